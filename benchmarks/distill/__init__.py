"""The study: every distiller on equal terms, from one TOML file and one command; see README.md here."""
