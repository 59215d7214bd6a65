"""Reads the code from a page of the built site, as a reader would copy it."""

from html.parser import HTMLParser


class _Code(HTMLParser):
    def __init__(self):
        super().__init__()
        self.files = {}
        self._name = self._text = None
        self._in_name = False

    def handle_starttag(self, tag, attributes):
        if tag == "span" and dict(attributes).get("class") == "filename":
            self._name, self._in_name = "", True
        elif tag == "code" and self._name:
            self._text = ""

    def handle_endtag(self, tag):
        if tag == "span":
            self._in_name = False
        elif tag == "code" and self._text is not None:
            self.files.setdefault(self._name, self._text)
            self._name = self._text = None

    def handle_data(self, data):
        if self._in_name:
            self._name += data
        elif self._text is not None:
            self._text += data


def code_of(html):
    """Returns the code of each block that has a title, by this title."""
    parser = _Code()
    parser.feed(html)
    return parser.files
