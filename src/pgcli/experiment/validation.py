"""From plain data to typed settings; from validation errors to one line each; from the same models to rows of help."""

import difflib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pgcli.errors import InputError
from pgcli.options import find_file, options, search_path, short
from pgcli.settings import Settings

BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}
WORDS = {int: "integer", float: "number", bool: "true or false", str: "text"}


class Setting(NamedTuple):
    """One row of help."""

    key: str
    expects: str
    value: Any
    help: str


def settings_of(model: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> Iterator[Setting]:
    """The settings that a model declares, nested ones too, with the values of a composed config."""
    for name, field in model.model_fields.items():
        if field.exclude or name == "name":
            continue
        nested, value = nested_model(field.annotation), values.get(name)
        if nested and isinstance(value, Mapping):
            yield from settings_of(nested, value, f"{prefix}{name}.")
        else:
            yield Setting(prefix + name, expects(field), value, field.description or "")


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that is a group of settings."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def expects(field: FieldInfo) -> str:
    """`number > 0, <= 1`, `integer >= 1 or null`, `constant | linear`, `list of integer > 0`."""
    return _describe(field.annotation, field.metadata)


def _describe(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    arguments, origin = get_args(annotation), get_origin(annotation)
    bounds = ", ".join(
        f"{sign} {bound:g}"
        for m in metadata
        for name, sign in BOUNDS.items()
        if (bound := getattr(m, name, None)) is not None
    )
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        parts = [_describe(part, metadata) for part in arguments if part is not type(None)]
        return " or ".join([*parts, "null"] if type(None) in arguments else parts)
    some = "non-empty " if any(getattr(m, "min_length", None) for m in metadata) else ""
    if origin in (list, tuple, set, frozenset):
        return some + (f"list of {_describe(arguments[0])}" if arguments else "list")
    if origin is dict:
        return "settings"
    if origin is Annotated:  # Annotated[int, Field(gt=0)], as in PositiveInt
        inner = [m for part in arguments[1:] for m in getattr(part, "metadata", [part])]
        return _describe(arguments[0], inner)
    if nested_model(annotation):
        return "settings"
    word = WORDS.get(annotation, getattr(annotation, "__name__", "value"))
    return f"{some}{word} {bounds}" if bounds else some + word


# ---------------------------------------------------------------- refusals


class Problem(NamedTuple):
    """What is wrong with a key: `unknown`, `missing` or `value`; `text` completes the sentence."""

    key: str
    kind: Literal["unknown", "missing", "value"]
    text: str = ""


def validate(model: type[Settings], data: Any, prefix: str = "") -> tuple[Settings | None, list[Problem]]:
    """The typed settings, or all mistakes in them."""
    try:
        settings = model.model_validate(data)
    except ValidationError as error:
        found = {
            problem.key: problem for problem in (_problem(model, data, prefix, e) for e in reversed(error.errors()))
        }
        return None, list(reversed(found.values()))
    problems = list(_bools_as_numbers(settings, data, prefix))
    return (None, problems) if problems else (settings, [])


def _problem(model: type[BaseModel], data: Any, prefix: str, error: Any) -> Problem:
    """Pydantic's `loc` also names branches of unions and items of lists: only the part that is a field is a key."""
    path: list[str] = []
    field: FieldInfo | None = None
    inside: type[BaseModel] | None = model
    value, many = data, False
    for part in error["loc"]:
        if many and inside is not None:  # the index among several groups of one kind
            path.append(str(part))
            value, many = value[part], False
            continue
        if inside is None or part not in inside.model_fields:
            break
        field = inside.model_fields[part]
        path.append(str(part))
        value = value.get(part) if isinstance(value, Mapping) else value
        inside = nested_model(field.annotation)
        many = get_origin(field.annotation) in (list, tuple, dict)
    if error["type"] == "extra_forbidden":
        return Problem(prefix + ".".join(map(str, error["loc"])), "unknown")
    key = prefix + ".".join(path) if path else prefix.rstrip(".")
    help = f"   ({field.description})" if field and field.description else ""
    if error["type"] == "missing" and not isinstance(error["loc"][-1], int):  # else a list is too short
        return Problem(key, "missing", f"has no value: {expects(field) if field else 'settings'}{help}")
    if error["type"] == "value_error":  # raised by a model's own validator, in words
        return Problem(key, "value", f"is refused: {error['ctx']['error']}")
    if inside is not None and not many:
        members = ", ".join(f"{key}.{name}" for name in inside.model_fields)
        return Problem(key, "value", f"is a group of settings ({members}), not {show(value)}")
    return Problem(
        key, "value", f"must be {_article(expects(field) if field else 'settings')}, not {show(value)}{help}"
    )


def _bools_as_numbers(settings: BaseModel, data: Any, prefix: str) -> Iterator[Problem]:
    """Python and pydantic take `true` for 1; a config does not."""
    for name, field in type(settings).model_fields.items():
        value, given = getattr(settings, name), data.get(name) if isinstance(data, Mapping) else None
        if isinstance(value, BaseModel):
            yield from _bools_as_numbers(value, given, f"{prefix}{name}.")
        elif isinstance(given, bool) and not isinstance(value, bool):
            yield Problem(prefix + name, "value", f"must be {_article(expects(field))}, not {show(given)}")


def _article(phrase: str) -> str:
    if " | " in phrase:
        return f"one of {phrase.replace(' | ', ', ')}"
    articles = {"integer": "an ", "number": "a ", "list": "a ", "non-empty list": "a "}
    return next((article for word, article in articles.items() if phrase.startswith(word)), "") + phrase


def show(value: Any) -> str:
    """A value as YAML and the command line spell it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(show, value))}]"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value) or "''"


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that a user most likely meant: a slip of the keys, the beginning of a name, the same last part, or
    an abbreviation (`lr`); in the section that was named before any other. Capitals do not count.
    """
    candidates, word = list(candidates), word.lower()
    parent, _, last = word.rpartition(".")
    inside = [c for c in candidates if c.lower().rpartition(".")[0] == parent]
    steps: list[Callable[[], list[str]]] = [
        lambda: [c for c in inside if _is_close(last, c.rpartition(".")[2])],
        lambda: [c for c in inside if _begins(last, c.rpartition(".")[2])],
        lambda: [c for c in candidates if c.rpartition(".")[2] == last],
        lambda: [c for c in inside if _abbreviates(last, c.rpartition(".")[2])],
        lambda: difflib.get_close_matches(word, candidates, cutoff=0.75),
        lambda: [c for c in candidates if _abbreviates(last, c.rpartition(".")[2])],
    ]
    for step in steps:
        if found := step():
            return max(found, key=lambda c: _likeness(word, c))
    return None


def _likeness(word: str, other: str) -> float:
    return difflib.SequenceMatcher(None, word, other.lower()).ratio()


def _is_close(word: str, other: str) -> bool:
    """`learning_rte` and `learning_rate`. In a name of three or four letters one slip is much: `mpl` and `mlp`, which
    begin alike, are close, `gpu` and `cpu` are not.
    """
    alike = len(word) <= 4 and word[:1] == other[:1].lower()
    return _likeness(word, other) >= (0.6 if alike else 0.75)


def _begins(word: str, other: str) -> bool:
    """`clip` and `clipp` begin `clip_range`: three letters or more are the same, and at most the last is not."""
    return len(word) >= 3 and other.startswith(word[: max(3, len(word) - 1)])


def _abbreviates(short: str, long: str) -> bool:
    """`lr` and `lrr` abbreviate `learning_rate`: same first letter, the others in order."""
    letters = iter(long)
    return short[:1] == long[:1] and all(letter in letters for letter in short)


Model = TypeVar("Model", bound=Settings)


def read_file(
    group: str, name: str, model: type[Model], check: Callable[[Model], None], *, noun: str,
    config_dirs: Iterable[Path | str],
) -> tuple[Model, Path]:  # fmt: skip
    """The checked settings of an option that is not part of an experiment's config (a study, a pipeline), and its file.

    Raises InputError, as `read_settings` does, and if there is none of this name. noun: what such a file describes.
    """
    folders = search_path(config_dirs)
    file = find_file(group, name, folders) if name and Path(name).name == name else None
    if file is None:
        known = list(options(group, folders))
        close = nearest(name, known)
        raise InputError(
            f"no {noun} is called `{name}`" + (f"; did you mean `{close}`?" if close else "")
            + f"   (there are {', '.join(known)})"
        )  # fmt: skip
    return read_settings(file, model, check, noun=noun), file


def read_settings(file: Path, model: type[Model], check: Callable[[Model], None], *, noun: str) -> Model:
    """The checked settings of a file.

    check: checks that the model cannot do by itself; raises InputError.
    Raises InputError with one line for each mistake.
    """
    import yaml

    try:
        data = yaml.safe_load(file.read_text("utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{short(file)}{line}: bad YAML: {getattr(error, 'problem', error)}") from error
    except OSError as error:
        raise InputError(f"{short(file)} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{short(file)} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{short(file)} must hold settings (key: value)")
    found, problems = validate(model, data)
    if not isinstance(found, model):
        raise InputError("\n".join(f"{short(file)}: {_sentence(model, p, noun)}" for p in problems))
    try:
        check(found)
    except InputError as error:
        raise InputError(f"{short(file)}: {error}") from error
    return found


def _sentence(model: type[BaseModel], problem: Problem, noun: str) -> str:
    if problem.kind != "unknown":
        return f"`{problem.key}` {problem.text}".replace("`` is refused: ", "")
    *parents, last = problem.key.split(".")
    for parent in parents:
        if parent in model.model_fields:
            model = nested_model(model.model_fields[parent].annotation) or model
    close = nearest(last, model.model_fields)
    return f"`{problem.key}` is not a setting of a {noun}" + (f"; did you mean `{close}`?" if close else "")
