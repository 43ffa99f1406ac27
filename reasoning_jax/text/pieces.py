"""The text that each token adds to a response.

Dimension key: none.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Token ids to text; ids that end inside a character give a replacement character."""


def text_pieces(decode: Decode, token_ids: Sequence[int]) -> tuple[str, ...]:
    r"""Cuts the text of a sequence into one piece per token.

    The pieces together are `decode(token_ids)`, whatever the tokenizer does. A token that ends
    inside a character gets no text; the one that completes the character gets it whole. So do
    special tokens that `decode` leaves out.

    A token's piece is what `decode` adds when the token joins a window of those before it, for
    tokens alone lose what depends on their neighbours (SentencePiece drops a space where a text
    begins). What is added counts only if the whole text goes on with it: a replacement character
    does not, unless it stands in the text.

    Args:
      decode: text of token ids.
      token_ids: the response's tokens.

    Returns:
      As many pieces as tokens.

    >>> pieces = text_pieces(lambda ids: bytes(ids).decode(errors="replace"), [49, 43, 195, 188])
    >>> pieces == ("1", "+", "", "\xfc")
    True
    """
    whole = decode(token_ids)
    pieces = [""] * len(token_ids)
    done = start = read = 0
    for index in range(len(token_ids)):
        before = decode(token_ids[start:read])
        piece = decode(token_ids[start : index + 1])[len(before) :]
        if not piece or not whole.startswith(piece, done):
            # The window may have begun where the tokenizer treats a beginning in its own way.
            everything = decode(token_ids[: index + 1])
            piece = everything[done:] if whole.startswith(everything) else ""
        if piece:
            pieces[index] = piece
            done += len(piece)
            start, read = read, index + 1
    if pieces:
        pieces[-1] += whole[done:]
    return tuple(pieces)


def token_at(pieces: Sequence[str], character: int) -> int | None:
    """The token that holds a character of the text; None past its end.

    Args:
      pieces: text of each token.
      character: index into the joined pieces.

    >>> token_at(("12", "", " =", " 5"), 3)
    2
    """
    end = 0
    for index, piece in enumerate(pieces):
        end += len(piece)
        if character < end:
            return index
    return None
