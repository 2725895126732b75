//! A module imports only modules of lower rank: the table of docs/architecture.md, enforced on the source text.
