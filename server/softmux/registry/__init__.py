"""Names, versions, tenants and keys in Redis; the files of versions in Redis or a blob store. No model, no HTTP."""
