"""The Ray Serve deployment: one replica holds one service.

Import it through `madewithml.serve`, which sets the variables that Ray Serve reads when it is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve

from madewithml import config, errors, host, predict
from madewithml.serving import app, door, ray_environment, replica

if TYPE_CHECKING:
    from fastapi import FastAPI


@serve.deployment(max_ongoing_requests=4096, health_check_period_s=1, health_check_timeout_s=4)
@serve.ingress()
class ModelDeployment:
    """A run's best checkpoint as an HTTP service.

    Args:
        run_id: MLflow run; its best checkpoint is loaded, once, when the replica starts.
        threshold: Confidence below which an answer abstains; None takes the run's certificate, else 0.9.
        checkpoint: Folder to load instead of asking MLflow.
        settings: Settings as `config.Settings.model_dump` gives them; None reads them where the replica runs.
        threads: Threads of one computation; None means every core the replica may use.
        plan: `serving.replica.Plan` as a dictionary, instead of all the others: what `madewithml serve` gives.
    """

    def __init__(
        self,
        run_id: str,
        threshold: float | None = None,
        *,
        checkpoint: str | None = None,
        settings: dict[str, Any] | None = None,
        threads: int | None = None,
        plan: dict[str, Any] | None = None,
    ) -> None:
        if plan is None:
            found = config.restore(settings) if settings else config.load()
            folder = checkpoint or str(predict.get_best_checkpoint(run_id))
            own = {**found.model_dump(), "threshold": threshold}
            plan = {
                "run_id": run_id,
                "checkpoint": folder,
                "settings": own,
                "threads": threads or host.available_cores(),
            }
        made = replica.Plan(**plan)
        self.service = replica.open_service(made)
        self.service.exit_when_hung()
        self._sharers = made.sharers

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve once the constructor is through."""
        behind_haproxy = ray_environment.scratch() is not None
        return app.create_app(
            self.service,
            adds_request_id=False,
            behind_haproxy=behind_haproxy,
            sharers=self._sharers,
            door=self._door() if behind_haproxy else None,
        )

    def _door(self) -> door.Door:
        own = app.create_app(self.service, behind_haproxy=True, sharers=self._sharers)
        replica_id = serve.get_replica_context().replica_id.to_full_id_str()
        return door.Door(own, replica_id, timeout_s=self.service.settings.drain_timeout_s)

    def check_health(self) -> None:
        """Called by Ray Serve every second."""
        if not self.service.ready:
            raise errors.NotReadyError("the replica is starting or stopping")
        if self.service.hung:
            raise errors.NotReadyError("the engine does not come back from a batch")
