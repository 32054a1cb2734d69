"""The server's settings: environment variables LEUKDETECT_…, or flags of `python -m serving`."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Serves a LeukDetect model. Every flag is also an environment variable: --max-pixels is LEUKDETECT_MAX_PIXELS."""

    model_config = SettingsConfigDict(
        env_prefix="LEUKDETECT_",
        populate_by_name=True,
        cli_prog_name="python -m serving",
        cli_kebab_case=True,
        frozen=True,
    )

    model: str = Field(
        default="models:/leukdetect@champion",
        description="what to serve: a registry alias, models:/NAME@ALIAS, or the path of an .onnx file",
    )
    precision: Literal["fp32", "int8"] = Field(
        default="fp32", description="which of a registered model's two files to serve"
    )
    tracking_uri: str = Field(
        default="sqlite:///mlflow.db",
        validation_alias="MLFLOW_TRACKING_URI",
        description="the MLflow registry; its variable is MLflow's own, MLFLOW_TRACKING_URI",
    )
    cache_dir: Path = Field(
        default=Path(".serving"), description="where downloaded models stay, so that a start needs no registry"
    )
    host: str = Field(default="127.0.0.1", description="the address to listen on; 0.0.0.0 for every interface")
    port: int = Field(default=8000, ge=0, le=65535, description="the port to listen on")
    max_body_bytes: int = Field(
        default=20_000_000, gt=0, description="a larger request is refused before it is parsed (413)"
    )
    max_pixels: int = Field(
        default=40_000_000, gt=0, description="a larger image is refused before it is decoded (413)"
    )
    queue_size: int = Field(
        default=32, gt=0, description="images that may wait for the model; one more is refused (503)"
    )
    drain_seconds: int = Field(default=30, gt=0, description="how long a stop (SIGTERM) waits for requests in flight")
