"""The pages that subjects see: templates, style sheet and texts.

Owns texts and layout. Doesn't own who may see a page (api). Pages work without JavaScript, but
for the implicit flow, and load nothing from other origins. Templates escape every value.
"""
