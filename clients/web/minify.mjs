// Writes a module that TypeScript has emitted without what a browser doesn't need: comments, white space, and
// the names of private members. With the compiler that is here anyway.
//
//   node minify.mjs TYPESCRIPT FILE
import { readFileSync, writeFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const [compiler, file] = process.argv.slice(2)
const { default: ts } = await import(pathToFileURL(compiler))
const source = ts.createSourceFile(file, readFileSync(file, 'utf8'), ts.ScriptTarget.ES2022, true)
const names = new Map()
let written = ''

function write(node) {
  if (ts.isJSDoc(node)) return
  const parts = node.getChildren()
  if (parts.length > 0) return parts.forEach(write)
  let text = node.getText()
  if (ts.isPrivateIdentifier(node)) {
    const short = names.size < 26 ? (names.size + 10).toString(36) : '_' + names.size
    if (!names.has(text)) names.set(text, '#' + short)
    text = names.get(text)
  }
  if (ts.isNoSubstitutionTemplateLiteral(node)) text = text.replace(/\s+/g, ' ').replace(/ ?([{};,`]) ?|(?<=:) /g, '$1')
  if (/[\w$#]$/.test(written) && /^[\w$#]/.test(text)) written += ' '
  if (/[-+]$/.test(written) && written.at(-1) === text[0]) written += ' '
  written += text
}

write(source)
writeFileSync(file, written + '\n')
