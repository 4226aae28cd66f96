"""Many runs of a family of files, in order of time: series of each metric, their changes, and which of them are worse.

A **family** is what is compared with one reference: the runs whose reference has the same content. Its name, and those
of files and runs, play no part. A run without a reference belongs to the families of its files, each by its content.

A **series** is one metric of one role in a family. The role is what people call it by: the type of the file and how it
is run (`Q4_K_M`, `Q4_K_M [kv=q8_0/q8_0]`), or `reference`. The content of a candidate's file is not part of it, since
files change from release to release: that is what a history shows. Where a run has two files of one type, names tell
them apart, in all runs of the family. Only values of whole models are series.

A **segment** is the part of a series whose points were measured under the same conditions: the same text in the same
windows, and the settings that a metric of its kind depends on (`gguf_harness.judge.history.identity`). Points of
different segments are never compared. What an old run did not record is not known to differ. llama.cpp, the machine and
the version of the harness are no conditions, except for timings and memory: a change of them is told beside a change of
the number.
"""

from __future__ import annotations

from gguf_harness.judge.history.families import build_history
from gguf_harness.judge.history.history_records import (
    Change,
    Family,
    History,
    Moment,
    Point,
    Segment,
    Series,
)
from gguf_harness.judge.history.selection import read_history

__all__ = ["Change", "Family", "History", "Moment", "Point", "Segment", "Series", "build_history", "read_history"]
