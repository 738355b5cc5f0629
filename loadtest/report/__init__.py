"""Documents (`loadtest.results`) as tables, Markdown, CSV, .hgrm, and a page."""
