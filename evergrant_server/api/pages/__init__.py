"""The pages of subjects and people: connect link, callback, account choice, logins, authorization requests.

Owns browser cookies, CSRF tokens and what a callback is checked for. Doesn't own the pages' texts
(console) or the exchange of the code (a worker's).
"""
