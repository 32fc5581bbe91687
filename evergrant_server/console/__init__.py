"""The pages that subjects see, and the console's: templates, style sheets and texts.

Owns texts and layout. Doesn't own who may see a page (api). Pages work without JavaScript, but
for the implicit flow, and load nothing from other origins; `static` has htmx, unchanged, for the
console. Templates escape every value.
"""
