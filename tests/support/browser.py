"""The browser that pages are opened with, where there is one."""

import shutil

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
