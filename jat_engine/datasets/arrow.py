"""Check the Arrow types of columns that others have written, and unpack their encodings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .schema import RL_COLUMNS, TEXT_COLUMNS, TOKENIZED_COLUMNS, check_columns

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS, _INTEGERS, _STRINGS, _IMAGES = "numbers", "integers", "strings", "images"

_COLUMNS: dict[str, tuple[int, str, str]] = {
    # dimensions of lists, leaves, remedy
    "continuous_observations": (2, _NUMBERS, "a list of steps, each a list of float32"),
    "continuous_actions": (2, _NUMBERS, "a list of steps, each a list of float32"),
    "rewards": (1, _NUMBERS, "a list with a float32 for each step"),
    "loss_weight": (1, _NUMBERS, "a list with a float32 for each step"),
    "discrete_observations": (2, _INTEGERS, "a list of steps, each a list of int64"),
    "discrete_actions": (1, _INTEGERS, "a list with an int64 for each step"),
    "attention_mask": (1, _INTEGERS, "a list with an int64 or a bool for each step"),
    "text_observations": (1, _STRINGS, "a list with a string for each step"),
    "image_observations": (
        1,
        _IMAGES,
        "a list with an image for each step: {bytes, path} or the bytes of a PNG file, or 84 x 84 x 4 numbers",
    ),
}


def check_header(types: pa.Schema, *, source: str) -> list[str]:
    """Check the names and the types of the columns of an RL dataset, published or tokenized.

    Args:
        types: schema of a table or file.
        source: the file or dataset, for error messages.

    Returns:
        The columns to read: the published ones in stored order, then those of a tokenized dataset.

    Raises:
        DataError: see `check_columns` and `check_types`.
    """
    given = list(dict.fromkeys(types.names))
    extra = [name for name in TOKENIZED_COLUMNS if name in given]
    others = [name for name in given if name not in (*RL_COLUMNS, *TOKENIZED_COLUMNS)]
    names = [name for name in given if name in RL_COLUMNS]
    names = [*check_columns(names, source=source, others=others), *extra]
    check_types(types, names, source=source)
    return names


def has_texts(types: pa.Schema) -> bool:
    """Return whether a dataset has texts or captions instead of episodes."""
    return not set(TEXT_COLUMNS).isdisjoint(types.names)


def check_types(types: pa.Schema, names: Iterable[str], *, source: str) -> None:
    """Check the types of RL columns. Any width of numbers, any list, dictionaries and views are accepted.

    Args:
        types: schema of a table or file.
        names: columns to check; others can be of any type.
        source: the file or dataset, for error messages.

    Raises:
        DataError: a column exists twice, or has a type that cannot be what its name says. Names file, column and type.
    """
    for name in names:
        if types.names.count(name) > 1:
            raise DataError(
                f"{source}: column {name}: expected it once, got it {types.names.count(name)} times; drop one"
            )
        if name not in _COLUMNS:
            continue
        dimensions, leaves, words = _COLUMNS[name]
        given = types.field(name).type
        found, leaf = _leaf(given)
        if (found, _kind(leaf, name)) not in _accepted(dimensions, leaves):
            raise DataError(f"{source}: column {name}: expected {words}, got {given}; {_remedy(name, leaf)}")


def _accepted(dimensions: int, leaves: str) -> set[tuple[int, str]]:
    if leaves == _IMAGES:
        return {(1, _IMAGES), (4, _NUMBERS), (4, _INTEGERS)}
    return {(dimensions, leaves)} | ({(dimensions, _INTEGERS)} if leaves == _NUMBERS else set())


def _remedy(name: str, leaf: pa.DataType) -> str:
    import pyarrow as pa

    if name == "image_observations" and pa.types.is_string(leaf):
        return "store the bytes of the files, not their paths"
    if name != "image_observations" and pa.types.is_struct(leaf):
        return "join its fields to one list"
    return "convert the column and write the file again"


def _leaf(given: pa.DataType) -> tuple[int, pa.DataType]:
    """Return the number of lists around the values of a type, and the type of the values."""
    dimensions = 0
    while True:
        if is_extension(given) and is_list(given.storage_type):
            shape = getattr(given, "shape", None)  # of Arrow's tensors, which are flat in the storage
            if getattr(given, "extension_name", "") == "arrow.fixed_shape_tensor" and len(shape or ()) != 1:
                return dimensions, given
            given = given.storage_type
        elif is_list(given):
            dimensions, given = dimensions + 1, given.value_type
        elif hasattr(given, "value_type"):  # of a dictionary
            given = given.value_type
        else:
            return dimensions, given


def is_extension(given: pa.DataType) -> bool:
    """Return whether a type is an extension type, such as `datasets.Array2D`."""
    import pyarrow as pa

    return isinstance(given, pa.BaseExtensionType)


def is_list(given: pa.DataType) -> bool:
    """Return whether a type is any kind of list."""
    import pyarrow as pa

    kinds = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(pa.types, kind)(given) for kind in kinds)


def _kind(leaf: pa.DataType, name: str) -> str | None:
    import pyarrow as pa

    if pa.types.is_integer(leaf) or (name == "attention_mask" and pa.types.is_boolean(leaf)):
        return _INTEGERS
    if pa.types.is_floating(leaf):
        return _NUMBERS
    if pa.types.is_string(leaf) or pa.types.is_large_string(leaf) or pa.types.is_string_view(leaf):
        return _STRINGS
    if is_bytes(leaf) or (pa.types.is_struct(leaf) and leaf.get_field_index("bytes") >= 0):
        return _IMAGES
    return None


def is_bytes(leaf: pa.DataType) -> bool:
    """Return whether a type is any kind of bytes."""
    import pyarrow as pa

    kinds = ("is_binary", "is_large_binary", "is_binary_view", "is_fixed_size_binary")
    return any(getattr(pa.types, kind)(leaf) for kind in kinds)


def plain(array: Any) -> Any:
    """Return an array in one chunk, without a dictionary or an extension type.

    Args:
        array: an Arrow array of any type.
    """
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # more than fits into one
        array = pa.concat_arrays(array.chunks)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array


class NotUtf8Error(ValueError):
    """Strings of a column are not UTF-8, which Parquet files do not check."""


def strings(array: Any, name: str) -> list[Any]:
    """Return the values of a column of strings.

    Args:
        array: an Arrow array.
        name: of the column, for the error message.

    Raises:
        NotUtf8Error: names the column and the first wrong value.
    """
    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError as error:
        raise NotUtf8Error(f"{name}: expected UTF-8, got {error.object[:40]!r}; encode the texts again") from None
    return values
