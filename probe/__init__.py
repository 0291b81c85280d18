"""pgprobe: drives the PostgreSQL SSLRequest handshake and says where a hop breaks it.

The data's way, which is also the order of imports (a module imports only what stands above it;
``tests/test_architecture.py`` holds it)::

    target ─► attempts ─► drivers ─┐
                                   ▼
            live socket ───┐
                           ├─► Transcript ─► observer ─► Handshake ─► Evidence ─► rules ─► Findings
            capture file ──┘    (events)                  (facts)                    └► reports
                                   │
                                   └► recording ─► capture file

From top to bottom: ``wire`` (bytes and messages), ``transcript``, ``certificate``, ``handshake``,
``witness`` (what was sent against what a witness says has arrived), ``finding``, ``conninfo``,
``password`` and ``target`` (what is asked for), ``attempt`` (what to send), ``fate`` (how one
connection fared), ``evidence`` (what rules are asked about), ``binding``, ``refusal``, ``signs``
and ``path`` (what stands between), ``login``, ``tls`` and ``identity``, ``schedule`` (manners),
``ends`` (whose packet it is), ``window``, ``pcapng``, ``packet``, ``flow``, ``store`` (connections
that wait until they are asked for), ``stream``, ``gather`` and ``split`` (captures; ``processes``:
side by side), ``drivers``, ``sources``, ``ladder`` and ``observer``, ``rules``, ``clients``,
``verdict``, ``door`` and ``diagnosis``, ``vantage`` (one connection in several captures, with
``sighting``, ``clock``, ``matching`` and ``hop``), ``digest`` (what is kept of each of very many
connections; ``alike``: which need not be read again), ``reading``, ``replay`` (answers then and
now), ``visit`` (asks at every door), ``recorder`` (a run kept as a file, by ``recording``,
``blocks``, ``datagram`` and ``note``), ``reports``, ``commands``. The products (``observer`` and
what judges) never import a maker of bytes (``tls``, ``schedule``, ``drivers``, ``sources``,
``recording``).

A module with a singular name is a station on that way; a folder with a plural name holds
siblings with one signature. ``probe.diagnosis.diagnose`` is the whole program in a few lines.
"""

__version__ = "0.1.0"
