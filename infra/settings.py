"""One frozen Settings, the only reader of the environment; domains are TOML files beside this module.

Read inside a flow or a command, never at import.
"""

from __future__ import annotations

import re
import tomllib
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def parse_duration(text: object) -> timedelta:
    """`90s`, `5min`, `1h`, `7d` as a timedelta.

    Raises:
        ValueError: another form.
    """
    if isinstance(text, timedelta):
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", str(text).strip())
    if match is None:
        raise ValueError(f"expected a duration such as 90s, 5min, 1h or 7d; got {text!r}")
    return timedelta(seconds=float(match[1]) * _UNITS[match[2]])


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeedSettings(_Frozen):
    """Where frames come from and how they are matched to slots."""

    kind: str
    url: str
    cadence: Duration
    tolerance: Duration
    quantity: str = "rainfall_rate"
    storage: dict[str, str | bool] = Field(default_factory=dict)
    options: dict[str, str] = Field(default_factory=dict)
    future_tolerance: Duration = timedelta(minutes=5)


class ClockSettings(_Frozen):
    """A replayed past instead of now; speed 60 runs an hour a minute."""

    replay_from: AwareDatetime | None = None
    replay_to: AwareDatetime | None = None
    speed: float = 1.0
    latency: Duration | None = None


class RegionSettings(_Frozen):
    """Optional crop (bounds in the CRS's units) and integer block-mean factor."""

    x: tuple[float, float] | None = None
    y: tuple[float, float] | None = None
    coarsen: int = Field(default=1, ge=1)


class ArchiveSettings(_Frozen):
    """Where the Icechunk repository lives."""

    url: str
    retention: Duration = timedelta(days=14)


class ContextSettings(_Frozen):
    """What a nowcast needs and what it may lack."""

    frames: int = Field(default=13, ge=2)
    max_missing: int = Field(default=1, ge=0)
    max_age: Duration = timedelta(minutes=15)


class ForecastSettings(_Frozen):
    """What is forecast, by whom, by when.

    `members`: of an ensemble, where a rung gives any. Where the deadline leaves too little time for all of them, their
    sampling steps go down to `least_steps`, then their number to `least_members`, then the next rung has its turn.
    """

    lead_times: int = Field(default=12, ge=1)
    ladder: tuple[str, ...] = ("prediff", "earthformer", "extrapolation", "persistence")
    deadline: Duration = timedelta(seconds=60)
    model: str | None = None
    members: int = Field(default=8, ge=1)
    least_members: int = Field(default=2, ge=2)
    least_steps: int = Field(default=4, ge=1)


class ProductSettings(_Frozen):
    """Where products go; thresholds in the quantity's units, quantiles of an ensemble's members as shares of 1."""

    url: str
    thresholds: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
    quantiles: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.1, 0.5, 0.9)
    retention: Duration = timedelta(days=7)


class VerificationSettings(_Frozen):
    """How issued products are scored, and when skill counts as degraded."""

    thresholds: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0)
    neighbourhoods_km: tuple[float, ...] = (1.0, 5.0, 20.0)
    degraded_below: float = 0.0
    window: int = Field(default=12, ge=1)


class TrainingSettings(_Frozen):
    """What `train` does when it is not told otherwise (a retraining started by an event, say).

    With `dataset` and `dataset_url` (any fsspec address; `dataset_storage`: options such as anon) it trains on a
    published dataset, read in place, instead of the archive; `thresholds` are then in that dataset's units.

    How an Earthformer is trained: `accumulate` micro-batches per step on each of `devices`, gradients of at most the
    norm `gradient_clip`, `workers` loader processes, an end after `patience` validations without improvement (None:
    never); `precision` and `strategy` by Lightning's names. PreDiff's stages keep to the recipes of their presets.
    """

    preset: str = "earthformer/small-64"
    budget: Duration = timedelta(minutes=20)
    batch_size: int = Field(default=16, ge=1)
    accumulate: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    loss: Literal["mse", "balanced", "csi"] = "csi"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    devices: int = Field(default=1, ge=1)
    strategy: str = Field(default="auto", min_length=1)
    gradient_clip: float = Field(default=1.0, gt=0)
    augment: bool = False
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    validate_every: int = Field(default=500, ge=1)
    patience: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    workers: int = Field(default=0, ge=0)
    split: tuple[float, float, float] = (0.7, 0.15, 0.15)
    event_limit: Duration | None = None
    guard: Duration | None = None
    dataset: Literal["sevir", "sevir-lr", "icar-enso", "icar-enso-paper", "icar-enso-soda", "nbody"] | None = None
    dataset_url: str | None = None
    dataset_storage: dict[str, str | bool] = Field(default_factory=dict)
    thresholds: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.dataset is None) != (self.dataset_url is None):
            raise ValueError("expected dataset and dataset_url together, or neither")
        parts = self.accumulate * self.devices
        if self.batch_size % parts:
            raise ValueError(
                f"expected a batch_size that divides into accumulate x devices = {parts} parts; got {self.batch_size}"
            )
        return self


class Domain(_Frozen):
    """One forecast domain: feed, region, archive, context, forecast, product, verification, training."""

    name: str
    title: str = ""
    feed: FeedSettings
    clock: ClockSettings = ClockSettings()
    region: RegionSettings = RegionSettings()
    archive: ArchiveSettings
    context: ContextSettings = ContextSettings()
    forecast: ForecastSettings = ForecastSettings()
    product: ProductSettings
    verification: VerificationSettings = VerificationSettings()
    training: TrainingSettings = TrainingSettings()


class Settings(BaseSettings):
    """Everything that is not a domain's: places, addresses, credentials, devices (`SQUALL_*` or `.env`).

    `nice`: by how much verifications and trainings that the server starts give way to nowcasts on their machine.
    """

    model_config = SettingsConfigDict(env_prefix="SQUALL_", env_file=".env", frozen=True, extra="ignore")

    home: Path = Path(".squall")
    data: Path = Path("../shared/data")
    golden: Path | None = None
    domains: Path | None = None
    store: str = "{home}/store"
    s3_endpoint: str | None = None
    s3_key: SecretStr | None = None
    s3_secret: SecretStr | None = None
    s3_region: str = "us-east-1"
    mlflow_uri: str | None = None
    prefect_url: str | None = None
    dask_address: str | None = None
    device: str = "auto"
    threads: int = 2
    nice: int = Field(default=10, ge=0, le=19)
    stack_database: Literal["auto", "sqlite", "postgres"] = "auto"
    active_domains: tuple[str, ...] = ()
    stack_ports: dict[str, int] = Field(default_factory=dict)

    @cached_property
    def root(self) -> Path:
        """Absolute state folder: local archives, products, logs of the stack."""
        return self.home.resolve()

    @property
    def tracking_uri(self) -> str:
        """MLflow: the server where one is configured, else SQLite under the state folder."""
        return self.mlflow_uri or f"sqlite:///{self.root}/mlflow.db"

    def expand(self, text: str) -> str:
        """Fill {home}, {data}, {store} and {domain-independent} places in a URL of a domain file."""
        places = {"home": str(self.root), "data": str(self.data.resolve())}
        return text.replace("{store}", self.store).format(**places)

    def storage_options(self, url: str) -> dict[str, object]:
        """fsspec (s3fs) options for `url`: what is set of credentials, endpoint and region on s3://, nothing elsewhere.

        What is not set is left to the AWS environment; only an endpoint that was set has the default region.
        """
        if not url.startswith("s3://"):
            return {}
        options: dict[str, object] = {}
        for name, secret in (("key", self.s3_key), ("secret", self.s3_secret)):
            if secret:
                options[name] = secret.get_secret_value()
        if self.s3_endpoint is not None:
            options["endpoint_url"] = self.s3_endpoint
        if self.s3_endpoint is not None or "s3_region" in self.model_fields_set:
            options["client_kwargs"] = {"region_name": self.s3_region}
        return options


def _dataset_place(training: TrainingSettings, settings: Settings) -> dict[str, str]:
    return {"dataset_url": settings.expand(training.dataset_url)} if training.dataset_url else {}


def domain_files(settings: Settings) -> dict[str, Path]:
    """Known domains by name: those shipped here, overridden and extended by the folder `SQUALL_DOMAINS`."""
    folders = [Path(__file__).parent / "domains", *([settings.domains] if settings.domains else [])]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def load_domain(name: str, settings: Settings) -> Domain:
    """The domain `name` with its URLs expanded.

    Raises:
        ValueError: no such domain, or its file breaks the schema (the message names file and field).
    """
    files = domain_files(settings)
    if name not in files:
        raise ValueError(f"expected a domain of {', '.join(sorted(files))}; got {name!r}")
    try:
        raw = tomllib.loads(files[name].read_text())
        domain = Domain.model_validate({"name": name, **raw})
    except ValueError as error:
        raise ValueError(f"domain file {files[name].name}: {error}") from error
    return domain.model_copy(
        update={
            "feed": domain.feed.model_copy(update={"url": settings.expand(domain.feed.url)}),
            "archive": domain.archive.model_copy(update={"url": settings.expand(domain.archive.url)}),
            "product": domain.product.model_copy(update={"url": settings.expand(domain.product.url)}),
            "training": domain.training.model_copy(update=_dataset_place(domain.training, settings)),
        }
    )
