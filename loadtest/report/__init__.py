"""Documents (`loadtest.results.document`) as tables, Markdown, CSV, .hgrm, and a page."""
