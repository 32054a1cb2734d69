"""The server's settings: environment variables LEUKDETECT_…, or flags of `python -m serving`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from leukdetect.registry import Registry

# Beyond a year a thread's wait overflows; "inf" would too.
Seconds = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=10**12)]


class Settings(BaseSettings):
    """Serves a LeukDetect model. Every flag is also an environment variable: --max-pixels is LEUKDETECT_MAX_PIXELS."""

    model_config = SettingsConfigDict(
        env_prefix="LEUKDETECT_",
        populate_by_name=True,
        cli_prog_name="python -m serving",
        cli_kebab_case=True,
        frozen=True,
    )

    # what is served
    model: str = Field(
        default="models:/leukdetect@champion",
        description="what to serve: a registry alias, models:/NAME@ALIAS, or the path of an .onnx file",
    )
    precision: Literal["auto", "fp32", "int8"] = Field(
        default="auto",
        description="which of a registered model's two files; auto is int8 where its golden set agrees, else fp32",
    )
    tracking_uri: str = Field(
        default="sqlite:///mlflow.db",
        validation_alias="MLFLOW_TRACKING_URI",
        description="the MLflow registry; its variable is MLflow's own, MLFLOW_TRACKING_URI",
    )
    cache_dir: Path = Field(default=Path(".serving"), description="downloaded models; a start then needs no registry")
    watch_seconds: Seconds = Field(default=15, description="how often to ask the registry, ±10 percent; 0: never")
    other_classes: bool = Field(
        default=False, description="whether a version with other classes may take over while the server runs"
    )
    unhashed: bool = Field(
        default=False, description="whether a version that was registered without hashes of its files may serve"
    )
    shadow_share: float = Field(
        default=0, ge=0, le=1, description="share of predictions for the challenger too, unseen"
    )

    # where it listens
    host: str = Field(default="127.0.0.1", description="the address to listen on; 0.0.0.0 for every interface")
    port: int = Field(default=8000, ge=0, le=65535, description="the port to listen on")
    tls_certificate: Path | None = Field(default=None, description="a PEM file; with tls_key: serve https")
    tls_key: Path | None = Field(default=None, description="the certificate's private key, a PEM file")
    path_prefix: str | None = Field(
        default=None,
        pattern=r"^(/[A-Za-z0-9._~-]+)+$",
        description="where a proxy puts the server: /leukdetect. The proxy may pass it on or leave it out",
    )
    keep_alive_seconds: int = Field(
        default=75, gt=0, description="how long a connection may wait for its next request; longer than a proxy's"
    )
    cors_origins: list[str] = Field(
        default=[], description='other sites whose pages may call the API, as JSON: ["https://lis.example"]'
    )

    # who may do what
    keys_file: Path | None = Field(default=None, description="API keys; without it anyone may predict")
    keys_readable: bool = Field(
        default=False,
        description="whether everybody on this machine may read keys_file, as in a container",
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        min_length=1,  # with an empty one anybody could sign
        description="the secret of the registry's webhook on POST /admin/webhook; by its variable, never as a flag",
    )
    webhook_secret_file: Path | None = Field(default=None, description="or a file that holds it")

    # limits
    max_body_bytes: Count = Field(default=20_000_000, description="a larger request is refused unparsed (413)")
    max_batch_bytes: Count = Field(default=100_000_000, description="the same for /predict/batch")
    max_batch_files: Count = Field(default=64, description="files in one request to /predict/batch (413)")
    max_pixels: Count = Field(default=40_000_000, description="a larger image is refused undecoded (413)")
    max_buffered_bytes: Count = Field(default=256_000_000, description="bodies in memory together; beyond: 503")
    request_memory: Count | None = Field(
        default=None,
        description="bytes that requests may hold together: heads, bodies, pixels, explanations; else what is left",
    )
    read_seconds: Seconds = Field(default=30, gt=0, description="how long a client may take to send its body (408)")
    queue_size: Count = Field(default=32, description="images admitted, not yet answered; one more: 503")
    explain_queue_size: Count = Field(default=4, description="the same for /explain, which waits for predictions")
    deadline_ms: Count = Field(default=2_000, description="how long an answer may take, from the request's end")
    max_deadline_ms: Count = Field(default=30_000, description="the longest that X-Deadline-Ms may ask for")

    # its own records
    feedback_db: Path | None = Field(
        default=None, description="SQLite: classes answered and confirmed, no image; else feedback.db in cache_dir"
    )
    feedback_days: int = Field(
        default=90, gt=0, le=36_500, description="how long an answer may wait for its confirmation"
    )

    # its end
    grace_seconds: Seconds = Field(default=1, description="after SIGTERM: not ready, yet answering")
    drain_seconds: int = Field(
        default=30, gt=0, le=31_536_000, description="after that: how long to wait for requests in flight"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise PydanticCustomError("empty", "is empty; give it a value, or unset it for its default")
        return value

    @model_validator(mode="before")
    @classmethod
    def _secret_from_its_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        if file := values.get("webhook_secret_file"):
            if values.get("webhook_secret"):
                raise ValueError("webhook_secret and webhook_secret_file are both set; one of them is enough")
            try:
                return values | {"webhook_secret": Path(file).read_text("utf-8").strip()}
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"webhook_secret_file: {file} cannot be read: {error}") from error
        return values

    @field_validator("feedback_db")
    @classmethod
    def _no_folder(cls, value: Path | None) -> Path | None:
        if value and value.is_dir():
            raise PydanticCustomError("folder", "must be a file's path and not a folder's")
        return value

    @model_validator(mode="after")
    def _tls_needs_both(self) -> "Settings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; one of them is missing")
        return self

    @property
    def registry(self) -> Registry:
        """Where registered models come from."""
        return Registry(self.tracking_uri, self.cache_dir, self.unhashed)
