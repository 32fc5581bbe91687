"""The generic workflow: a run of a job calls the job's activity, and history keeps the result.

`core.messages.jobs` is the table of jobs. Temporal finds a workflow by its type, so each job has a class of
its own here, named as the job; all of them run the same function.
"""

from typing import Any, cast

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.jobs import JOBS, Job
    from workflows import runs


async def _run(job: Job[Any, Any], request: Any) -> Any:
    """Have a worker do the job. One that goes on where its last run ended is told that run's result."""
    if job.following is not None:
        last = workflow.get_last_completion_result(cast("type[Any]", job.result))
        request = request if last is None else job.following(request, last)
    return await runs.call(job, request)


def _workflow_of(job: Job[Any, Any]) -> type:
    async def run(self: Any, request: Any) -> Any:
        return await _run(job, request)

    run.__qualname__ = f"{job.name}.run"  # of no local class, which Temporal refuses
    run.__annotations__ = {"request": job.request, "return": job.result}  # what the message is decoded as
    kind = type(job.name, (), {"__module__": __name__, "run": workflow.run(run)})
    return workflow.defn(name=job.name)(kind)


JOB_WORKFLOWS = tuple(_workflow_of(job) for job in JOBS.values())
globals().update({kind.__name__: kind for kind in JOB_WORKFLOWS})  # where the sandbox looks for them
