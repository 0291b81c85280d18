"""Passwords as SCRAM wants them: SASLprep (RFC 4013, a profile of stringprep, RFC 3454)."""

import stringprep
import unicodedata


def prepared(password: bytes) -> bytes:
    """The password as SASLprep makes it.

    As it is, where it is not UTF-8 or SASLprep forbids it (as in PostgreSQL: ``pg_saslprep``).
    """
    try:
        given = password.decode()
    except UnicodeDecodeError:
        return password
    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in given if not stringprep.in_table_b1(c)
    )
    text = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    return password if not text or _forbidden(text) else text.encode()


def _forbidden(text: str) -> bool:
    prohibited = (
        *(stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3),
        *(stringprep.in_table_c4, stringprep.in_table_c5, stringprep.in_table_c6),
        *(stringprep.in_table_c7, stringprep.in_table_c8, stringprep.in_table_c9),
        stringprep.in_table_a1,
    )
    if any(table(c) for c in text for table in prohibited):
        return True
    right_to_left = [stringprep.in_table_d1(c) for c in text]
    if not any(right_to_left):
        return False
    both_ends = right_to_left[0] and right_to_left[-1]
    return not both_ends or any(stringprep.in_table_d2(c) for c in text)
