"""The account that is kept of every row while a split is tokenised."""

import hashlib
import json
import logging
import time
from collections import Counter
from typing import Any, TextIO

logger = logging.getLogger("gemma_ft")

_SECONDS_BETWEEN_LINES = 15.0


class Account:
    """Everything that is counted on the way."""

    def __init__(self, dropped: TextIO) -> None:
        """Begin with nothing.

        Args:
            dropped: Where rows that are left out are listed, a JSON object a line.
        """
        self.read = self.examples = self.plain_text = self.system = 0
        self.contract: dict[str, Any] | None = None
        self.unused: list[str] | None = None
        """Columns of the first row that are not read."""
        self.hash = hashlib.sha256()
        self._dropped = dropped
        self._causes: Counter[str] = Counter()
        self._told = time.monotonic()

    def drop(self, where: str, cause: str, message: str) -> None:
        """Leave a row out, counted and listed."""
        self._causes[cause] += 1
        self._dropped.write(json.dumps({"where": where, "cause": cause, "message": message}) + "\n")

    def tell(self) -> None:
        """Say how far it has come, every now and then."""
        if time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            logger.info("tokenising: %s rows", f"{self.read:,}")

    def report(self) -> dict[str, Any]:
        """Return the counts."""
        return {
            "rows_read": self.read,
            "examples": self.examples,
            "plain_text": self.plain_text,
            "system_messages": self.system,
            "data_sha256": self.hash.hexdigest(),
            "dropped": dict(self._causes),
            "unused_columns": self.unused or [],
            "contract": self.contract or {},
        }
