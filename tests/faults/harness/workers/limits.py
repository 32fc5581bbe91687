"""The path's limits, shortened: what takes a minute in production takes a second here."""

from datetime import timedelta

HTTP_S = 0.9  # the longest a provider is listened to
PATIENT_S = 8.0  # for each of these in the proof afterwards
SEND_S = 0.6  # from the intent to the first byte
ANSWER_S = 1.1  # after that no client waits for the reply
TOKEN_S = 1  # an access token's life
LOOK_AGAIN_S = 0.2
REPLAY_S = 6.0  # the longest that others wait for a journalled reply
COMMIT_AGAIN_S = 0.5  # how long one that failed is put off at the most
SWEEP_S = 0.3  # how often journals are looked through
LOOK_ASIDE_S = 0.3  # and what was set aside there
REPAIRED_S = 0.6  # after that a definition that could read no token can
OVERDUE_S = 0.6  # how long a living neighbour's answer lies before it is taken up
SWEEP_LATE_S = 3.0  # the first time, where a refresh shall come first
SWEEP_SECOND_S = 1.0  # the first time, by who shall not be first
DRAIN_S = 2.0  # after that a worker that ends waits no longer for a store that is away
KEYS_AWAY_S = 0.7  # how long a worker holds no key
BEAT_S = 0.2
DATABASE_MS = 900  # statement, lock and idle-in-transaction time-outs
PAUSE_S = 2.4  # past every one of them
MOMENT_S = 0.4  # shorter than any of them: another change comes in between
MOST_SENDS = 2  # a thousand in production: what happens then is on the table, too
CASE_S = 20.0  # a case that takes longer hangs


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)
