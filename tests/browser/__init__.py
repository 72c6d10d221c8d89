"""JupyterLab in Chromium, as a person sees it."""
