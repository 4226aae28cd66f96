"""Pictures: one ES module a view in `src/`, bundled with what they need from npm in `built/`."""
