"""What a workflow does next: the pure transition of a connection, its timers and schedules.

`transition.next_step` maps state and event to state and command; one module for each kind of event.
`schedule` has the rules and their times: when a refresh ahead is due, how it is spread, how long to wait
after a failure. `timers` says which of a connection's times comes next. Calls no activity and reads no clock:
`workflows` does.
"""
