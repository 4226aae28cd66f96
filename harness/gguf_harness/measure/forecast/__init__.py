"""How long a session will take, before it decodes anything long; and what of it fits into a given time.

    needs.py        which measurements the tests of a suite need
    efforts.py      what each of them takes: tokens to decode, rows of logits to look at, and so on, by the options and
                    the file's header; variant_efforts.py has those of suites/kv and suites/lora
    scales.py       what that is counted in, and what it depends on
    fitted.py       what kinds take beyond their counts
    expected.py     the seconds that follow, without opening a model: also for the schedule of `pytest -n`
    calibration.py  what a token and a row cost: a short measurement of this file on this machine
    stored.py       which of them the cache has: the calls that tests make, with nothing measured
    forecast.py     all of this together: seconds, by suite and by subject
    budget.py       the options with which it fits into a time

A forecast is effort times cost times a **factor**. The factor is what is learned: seconds that a measurement took over
those that effort and cost gave. `store/learned_durations.py` keeps them in the cache, by machine, kind of measurement
and file. A measurement of a file that was measured here before takes its own factor; of a new file, that of its kind on
this machine; a kind that never ran here takes 1, and what `fitted.py` has of two models on one machine.
"""
