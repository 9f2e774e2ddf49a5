"""The report: what it says (content), how it looks (page, figures), what it concludes (verdict)."""
