"""One SELECT and nothing else: the first of two walls between a data set's query and its database.

The second is the database's own: a transaction that cannot write (`sql_table`). This one finds mistakes, such as a second
statement, before a connection is made. Lexical rules: ISO/IEC 9075-2, section 5, with PostgreSQL's dollar quotes.
"""

import re

from hansa.errors import QueryRefused

QUERY_BYTES_MOST = 1 << 16

_PART = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
      | (?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|(?P<dollar>\$\w*\$).*?(?P=dollar))
      | (?P<open>['"]|/\*|\$\w*\$)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<end>;)
      | (?P<other>\S)
      | \s+""",
    re.VERBOSE | re.DOTALL,
)
_FIRST = ("select", "with")
_WRITES = frozenset({"insert", "update", "delete", "merge", "into"})  # where a SELECT or WITH may carry one


def verify_select_only(query: str) -> None:
    """Check that a query is one SELECT.

    Args:
        query: SQL; it may begin with WITH and end with one semicolon.

    Raises:
        QueryRefused: It is not; the message names the word, for the query is no secret.

    Guarantees:
        - Text in comments, string literals and quoted names counts as neither a statement nor a word.
    """
    if len(query.encode()) > QUERY_BYTES_MOST:
        raise QueryRefused(f"the query has more than {QUERY_BYTES_MOST} bytes")
    first, ended = None, False
    for part in _PART.finditer(query):
        kind = part.lastgroup
        if kind == "open":
            raise QueryRefused("the query has a comment, text or name that does not end")
        if kind in (None, "comment"):
            continue
        if ended:
            raise QueryRefused("the query has more than one statement")
        ended = kind == "end"
        word = part.group().lower()
        if first is None and not ended:
            first = word
            if word not in _FIRST:
                raise QueryRefused(f"the query begins with {part.group()[:20]!r}, not with SELECT or WITH")
        if kind == "word" and word in _WRITES:
            raise QueryRefused(
                f"the query has the word {word!r}, which may write",
                hint="a column of this name can be quoted; anything else belongs into a view of the database",
            )
    if first is None:
        raise QueryRefused("the query is empty")
