"""Import of existing grants, and export sealed to a public key.

Doesn't own installing an imported grant or sealing an export: workers do both.
"""
