"""The week of an admin, in a real browser and without a command line: thirty tasks at a running platform.

    python -m tests.e2e.week [--out DIR] [--only N] [--without-scripts]

One platform as `dev` starts it, a certified issuer at which people log in and accounts are connected, two
receivers, one browser. Each task is done by what a person sees: a link's or button's words, a field's label.
It asserts its outcome by the page and by the API; then its page is photographed at 390 and 1280 pixels, light
and dark, and read by axe. Prints a table; exits with 0 when all was done and nothing is wrong with a page.
`--without-scripts`: in a browser that runs none, so without axe. `--only N`: tasks before it are done without
pictures, since it may need what they made.
"""
