"""`dev`: the whole platform from one command, without another installation.

Owns its start and end (`run`), what its API, worker and gateway do before they serve
(`services`: each prepares the half that it needs, at the same time), the processes that an earlier start left
behind (`leftovers`), and the file from which other commands learn where it is (`settings_file`). Doesn't
own the API or the worker: they are those of production.
"""

# what the two log once their half is prepared
DATABASE_READY = "database ready"
NAMESPACE_READY = "namespace ready"
# and where the database of an earlier start is gone
DATABASE_MADE_ANEW = "database made anew"
