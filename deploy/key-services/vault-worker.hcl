# What workers and operators may do. Without `create`, a key that is missing isn't made by mistake.
path "transit/encrypt/evergrant-lease" { capabilities = ["update"] }
path "transit/decrypt/evergrant-lease" { capabilities = ["update"] }
path "transit/keys/evergrant-lease" { capabilities = ["read"] }
path "transit/encrypt/evergrant-refresh" { capabilities = ["update"] }
path "transit/decrypt/evergrant-refresh" { capabilities = ["update"] }
path "transit/keys/evergrant-refresh" { capabilities = ["read"] }
path "transit/encrypt/evergrant-intake" { capabilities = ["update"] }
path "transit/decrypt/evergrant-intake" { capabilities = ["update"] }
path "transit/keys/evergrant-intake" { capabilities = ["read"] }
path "transit/encrypt/evergrant-authority" { capabilities = ["update"] }
path "transit/decrypt/evergrant-authority" { capabilities = ["update"] }
path "transit/keys/evergrant-authority" { capabilities = ["read"] }
path "transit/encrypt/evergrant-gateway" { capabilities = ["update"] }
path "transit/decrypt/evergrant-gateway" { capabilities = ["update"] }
path "transit/keys/evergrant-gateway" { capabilities = ["read"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
