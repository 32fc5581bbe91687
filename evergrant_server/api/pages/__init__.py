"""The subject's pages: connect link, callback and its fragment, account choice.

Owns browser cookies, CSRF tokens and what a callback is checked for. Doesn't own the pages' texts
(console) or the exchange of the code (a worker's).
"""
