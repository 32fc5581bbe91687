# What a process of the role api may do. Without `create`, a key that is missing isn't made by mistake.
path "transit/decrypt/evergrant-lease" { capabilities = ["update"] }
path "transit/keys/evergrant-lease" { capabilities = ["read"] }
path "transit/decrypt/evergrant-intake" { capabilities = ["update"] }
path "transit/keys/evergrant-intake" { capabilities = ["read"] }
path "transit/decrypt/evergrant-authority" { capabilities = ["update"] }
path "transit/keys/evergrant-authority" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
