"""Where the catalogue differs from other catalogues. Facts only.

Owns reading catalogues of other shapes and comparing them. Sends nothing and changes nothing: a
difference says that a maintainer should look at the provider's pages, not who is right.
"""
