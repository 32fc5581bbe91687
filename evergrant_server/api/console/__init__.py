"""The console: pages for people who look after connections, over the functions of the API's own routes.

Owns sessions of pasted API keys, forms and what a page shows of an answer. Doesn't own what a caller may do,
nor any change: each act calls the function behind the route of the API.
"""
