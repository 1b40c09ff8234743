"""The model as a web page for a phone: `course phone build` makes it, `course phone serve` serves it.

build   the page, the two engines of web/package-lock.json, the model's files, and a list of them all
serve   a small web server with the headers that threads in WebAssembly need, and a QR code
"""
