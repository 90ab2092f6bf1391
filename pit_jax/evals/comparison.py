"""Two sets of images compared by their features: FID, sFID, precision, recall, and the
Inception score of the generated one. Which network the features are of does not matter here.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh

from pit_jax.evals.frechet import frechet_distance
from pit_jax.evals.inception_score import SPLIT, InceptionScore, Score
from pit_jax.evals.manifold import NEIGHBOURS, precision_recall
from pit_jax.evals.statistics import FeatureStatistics, Gaussian


@dataclasses.dataclass(frozen=True)
class Description:
    """What is kept of a set of images. What is None was not measured and is not compared.

    Attributes:
      pool: of the features that FID takes.
      spatial: of those that sFID takes.
      features: (n, d) float32, the first n that `pool` was made of.
      score: the Inception score.
      count: images; None where a file does not say.
    """

    pool: Gaussian
    spatial: Gaussian | None = None
    features: np.ndarray | None = None
    score: Score | None = None
    count: int | None = None


class Collector:
    """Makes the description of a set from the outputs of a network, batch by batch.

    Attributes:
      count: images so far.
    """

    def __init__(self, features: int | None = None):
        """
        Args:
          features: how many rows of the features to keep for precision and recall; all of
            them by default, 0 for none. 50,000 of Inception's are 400 MB.
        """
        self.count = 0
        self._most = features
        self._kept: list[np.ndarray] = []
        self._statistics: dict[str, FeatureStatistics] = {}
        self._score = InceptionScore(SPLIT)

    def add(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Adds a batch: "pool" (n, d) and, if there, "spatial" and "probabilities".

        Rows that only fill up a batch must be taken out before. Other names are passed over.
        """
        pool = np.asarray(outputs["pool"], np.float32)
        for name in ("pool", "spatial"):
            if name in outputs:
                value = np.asarray(outputs[name])
                if name not in self._statistics:
                    self._statistics[name] = FeatureStatistics(value.shape[1])
                self._statistics[name].add(value)
        if "probabilities" in outputs:
            self._score.add(np.asarray(outputs["probabilities"]))
        left = len(pool) if self._most is None else max(0, self._most - self.count)
        self._kept.append(pool[:left].copy())
        self.count += len(pool)

    def description(self) -> Description:
        """Of all that was added.

        Raises:
          ConfigError: if that is fewer than two images, or features are not finite.
        """
        if "pool" not in self._statistics:
            self._statistics["pool"] = FeatureStatistics(1)  # says that there are none
        found = {name: s.gaussian() for name, s in self._statistics.items()}
        features = np.concatenate(self._kept)
        return Description(
            pool=found["pool"],
            spatial=found.get("spatial"),
            features=features if len(features) else None,
            score=self._score.score() if len(self._score) else None,
            count=self.count,
        )


def compare(
    generated: Description,
    reference: Description,
    *,
    k: int = NEIGHBOURS,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """What can be said of two sets, by name.

    Returns:
      "fid"; "sfid" if both have spatial statistics; "inception_score" and
      "inception_score_std" if the generated set has one; "precision" and "recall" if both
      have features.

    Args:
      generated, reference: of features of one network.
      k: neighbours of precision and recall.
      mesh: whose devices share precision and recall; by default the ambient one.

    Raises:
      ConfigError: if the features' dimensions differ, or there are too few for k.
    """
    found = {"fid": frechet_distance(generated.pool, reference.pool)}
    if generated.spatial is not None and reference.spatial is not None:
        found["sfid"] = frechet_distance(generated.spatial, reference.spatial)
    if generated.score is not None:
        found["inception_score"], found["inception_score_std"] = generated.score
    if generated.features is not None and reference.features is not None:
        found["precision"], found["recall"] = precision_recall(
            reference.features, generated.features, k=k, mesh=mesh
        )
    return found
