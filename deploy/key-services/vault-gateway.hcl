# What a process of the role gateway may do. Without `create`, a key that is missing isn't made by mistake.
path "transit/decrypt/evergrant-lease" { capabilities = ["update"] }
path "transit/keys/evergrant-lease" { capabilities = ["read"] }
path "transit/decrypt/evergrant-gateway" { capabilities = ["update"] }
path "transit/keys/evergrant-gateway" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
