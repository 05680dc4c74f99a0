"""Settings: one frozen object, read by an explicit call.

Order of precedence: the command line flag, then the `MADEWITHML_*` variable, then `madewithml.toml` in the
current folder, then the default. A bad value or an unknown key is an error that names it.

    settings = config.load(port=9000)        # a flag the person gave
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import pydantic_settings

from madewithml import errors
from madewithml import keys as keys_

PREFIX = "MADEWITHML_"
FILE = "madewithml.toml"
# Variables with our prefix that are no settings: what a `--local` process is given to serve, what HAProxy must hold.
NOT_SETTINGS = frozenset({"MADEWITHML_SERVE_PLAN", "MADEWITHML_LARGEST_BODY_BYTES", "MADEWITHML_LISTEN"})


class Settings(pydantic_settings.BaseSettings):
    """Everything that can be set, with its default.

    Attributes:
        home: Folder of all state: MLflow database and artifacts, caches, logs.
        tracking_uri: MLflow tracking server; None means SQLite under `home`.
        records_uri: Database of what callers tell afterwards, as SQLAlchemy has it; None means SQLite under `home`.
        encoder: Pretrained encoder to start training from: a folder or a Hugging Face id.
        datasets: Folder whose files `POST /evaluate/` may name.
        slices: Extra evaluation slices, name to regular expression.
        model_name: Name of the model in the Open Inference Protocol's addresses.
        host: Address to listen on.
        port: TCP port to listen on.
        threshold: Confidence below which an answer abstains; None means certificate, else 0.9.
        allow_caller_threshold: Whether a call may choose its own threshold (`?threshold=`).
        keys: Who may call, besides those in `keys_file`.
        keys_file: File of keys, made by `madewithml keys create`; None means `keys.json` under `home`, if it is there.
        allow_anonymous: Whether calls without a key are let in where there are keys, or on an address of the network.
        cors_origins: Origins whose pages may call from a browser; `*` for any.
        engine: What computes logits; `auto` takes what `optimize` chose.
        max_rows: Rows in one call.
        max_body_bytes: Bytes in one request body.
        max_queue_rows: Rows waiting in one replica before a call is answered 429.
        max_queue_s: Seconds a call may have to wait for its turn before it is answered 429.
        max_text_characters: Characters in one text; None for as many as fit into a body. Beyond the model's length a
            text is cut, not refused.
        max_headers: Fields in the head of a request.
        max_header_bytes: Their names and values together.
        body_timeout_s: Seconds in which a body must have come.
        max_batch_size: Rows that go through the model together, at most.
        request_timeout_s: Seconds after which a waiting request is answered 504; a caller may ask for less or more.
        max_request_timeout_s: The longest that a caller may ask for (`X-Request-Timeout-Ms`).
        hang_timeout_s: Seconds with the engine after which a batch counts as stuck and its process is replaced.
        drain_timeout_s: Seconds granted to accepted requests when the service stops.
        follow_interval_s: Seconds between two looks at the alias that is served.
        allow_cached: Whether the last model that was served from this address may start when MLflow is away.
        allow_uncertified: Whether a model without a certificate may replace one that has one.
        gate_max_flip_rate: Share of recent texts to which a model that takes over may give another label.
        gate_max_coverage_change: How far the share of accepted answers may change with it.
        gate_max_latency_ratio: How much more processor time a batch may take with it, as a multiple.
        gate_min_samples: Texts without which labels and coverage are not judged.
        shadow_share: Share of the requests that the shadow model sees too.
    """

    model_config = pydantic_settings.SettingsConfigDict(
        env_prefix=PREFIX, toml_file=FILE, extra="forbid", frozen=True, env_ignore_empty=True
    )

    home: Path = Path(".madewithml")
    tracking_uri: str | None = None
    records_uri: str | None = None
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    datasets: Path = Path("datasets")
    slices: dict[str, str] = pydantic.Field(default_factory=dict)
    model_name: str = pydantic.Field(default="madewithml", pattern=r"^[A-Za-z0-9._-]+$")
    host: str = "127.0.0.1"
    port: int = pydantic.Field(default=8000, ge=1, le=65535)
    threshold: float | None = pydantic.Field(default=None, ge=0.0, le=1.0)
    allow_caller_threshold: bool = False
    keys: tuple[keys_.Key, ...] = ()
    keys_file: Path | None = None
    allow_anonymous: bool = False
    cors_origins: tuple[str, ...] = ()
    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    max_rows: int = pydantic.Field(default=1000, ge=1)
    max_body_bytes: int = pydantic.Field(default=4 * 1024 * 1024, ge=1024)
    max_queue_rows: int = pydantic.Field(default=2000, ge=1)
    max_queue_s: float = pydantic.Field(default=20.0, gt=0)
    max_text_characters: int | None = pydantic.Field(default=None, ge=1)
    max_headers: int = pydantic.Field(default=100, ge=1)
    max_header_bytes: int = pydantic.Field(default=32 * 1024, ge=1024)
    body_timeout_s: float = pydantic.Field(default=30.0, gt=0)
    max_batch_size: int = pydantic.Field(default=16, ge=1)
    request_timeout_s: float = pydantic.Field(default=30.0, gt=0)
    max_request_timeout_s: float = pydantic.Field(default=60.0, gt=0)
    hang_timeout_s: float = pydantic.Field(default=5.0, gt=0)
    drain_timeout_s: float = pydantic.Field(default=10.0, gt=0)
    follow_interval_s: float = pydantic.Field(default=5.0, gt=0)
    allow_cached: bool = False
    allow_uncertified: bool = False
    gate_max_flip_rate: float = pydantic.Field(default=0.2, ge=0.0, le=1.0)
    gate_max_coverage_change: float = pydantic.Field(default=0.2, ge=0.0, le=1.0)
    gate_max_latency_ratio: float = pydantic.Field(default=2.0, gt=0)
    gate_min_samples: int = pydantic.Field(default=16, ge=1)
    shadow_share: float = pydantic.Field(default=0.1, ge=0.0, le=1.0)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[pydantic_settings.BaseSettings],
        init_settings: pydantic_settings.PydanticBaseSettingsSource,
        env_settings: pydantic_settings.PydanticBaseSettingsSource,
        dotenv_settings: pydantic_settings.PydanticBaseSettingsSource,  # noqa: ARG003 - the library passes it
        file_secret_settings: pydantic_settings.PydanticBaseSettingsSource,  # noqa: ARG003 - the library passes it
    ) -> tuple[pydantic_settings.PydanticBaseSettingsSource, ...]:
        """Flags, then variables, then the file; no `.env` and no secrets folder."""
        return init_settings, env_settings, pydantic_settings.TomlConfigSettingsSource(settings_cls)

    @property
    def mlflow_uri(self) -> str:
        """The tracking URI in force: the setting, or what `load` found in `MLFLOW_TRACKING_URI`, or our own SQLite."""
        return self.tracking_uri or self.sqlite_uri

    @property
    def records(self) -> str:
        """The database of records in force."""
        return self.records_uri or f"sqlite:///{self.home.resolve() / 'records.db'}"

    @property
    def keys_path(self) -> Path:
        """Where keys are kept, if there are any."""
        return self.keys_file or self.home / "keys.json"

    @property
    def is_on_loopback(self) -> bool:
        """Whether nobody but this machine can reach the address to listen on."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def sqlite_uri(self) -> str:
        """Our own tracking database, under `home`."""
        return f"sqlite:///{self.home.resolve() / 'mlflow.db'}"

    @property
    def has_own_mlflow(self) -> bool:
        """Whether runs are kept under `home`, and not by somebody else's MLflow."""
        return self.mlflow_uri == self.sqlite_uri


def load(**flags: Any) -> Settings:
    """Read the settings.

    Args:
        **flags: Values given on the command line; None means "not given".

    Returns:
        The frozen settings.

    Raises:
        UsageError: A value cannot be used, or a variable or key is unknown; the message names it.
    """
    _refuse_unknown_variables()
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except pydantic.ValidationError as err:
        raise errors.UsageError("; ".join(_describe(fault) for fault in err.errors())) from err
    except (pydantic_settings.SettingsError, ValueError) as err:
        msg = f"settings could not be read: {err}. Check {FILE} and the {PREFIX}* variables."
        raise errors.UsageError(msg) from err
    # Read once, here: MLflow itself changes the variable while it logs.
    uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
    return settings.model_copy(update={"tracking_uri": uri})


def restore(values: Mapping[str, Any]) -> Settings:
    """The settings that `model_dump` gave in another process; nothing is read again."""
    paths = {name: Path(values[name]) for name in ("home", "datasets", "keys_file") if values.get(name)}
    found = [keys_.Key(**key) if isinstance(key, dict) else key for key in values.get("keys", ())]
    return Settings.model_construct(**{**values, **paths, "keys": tuple(found)})


def _refuse_unknown_variables() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        msg = f"unknown variable {unknown[0]!r}. Known: {', '.join(sorted(known - NOT_SETTINGS))}."
        raise errors.UsageError(msg)


def _describe(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {name!r} (in {FILE}?). Known: {', '.join(sorted(Settings.model_fields))}."
    return f"bad value {fault['input']!r} for {name!r}: {fault['msg']} (flag, {PREFIX}{name.upper()} or {FILE})"
