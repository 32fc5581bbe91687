"""What a workflow does next: the pure transition of a connection, its timers and schedules.

`transition.next_step` maps state and event to state and command; one module for each kind of event. Calls no
activity and reads no clock: `workflows` does.
"""
