"""What a stranger sends to an experiment is read as JSON, and runs nothing."""

import subprocess
import sys
import textwrap

import pytest

RECEIVERS = {
    "the tuner, a metric": """
        from nni.runtime.msg_dispatcher import MsgDispatcher
        dispatcher = MsgDispatcher.__new__(MsgDispatcher)
        dispatcher.recovered_max_param_id = -1
        dispatcher.tuner, dispatcher.assessor = type("Tuner", (), {"receive_trial_result": print})(), None
        dispatcher.handle_report_metric_data(
            {"type": "FINAL", "parameter_id": 0, "trial_job_id": "T", "sequence": 0, "value": payload}
        )
    """,
    "the tuner, a command": """
        from nni.runtime import msg_dispatcher_base
        msg_dispatcher_base.load(payload)
    """,
    "the trial, its parameters": """
        from nni.runtime.trial_command_channel.v3 import TrialCommandChannelV3
        channel = TrialCommandChannelV3.__new__(TrialCommandChannelV3)
        answer = {"type": "parameter", "parameter": payload}
        channel._channel = type("Http", (), {"send": lambda *_: None, "receive": lambda _: answer})()
        channel.receive_parameter()
    """,
}
EVIL = """
    import nni
    from nni_gumbel.pipeline.manager import receive_plain_json

    class Evil:
        def __reduce__(self):
            return print, ("the stranger's code ran",)

    payload = nni.dump({"default": Evil()})
    receive_plain_json()
"""


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_a_pickle_in_what_is_received_is_not_run(receiver):
    code = textwrap.dedent(EVIL) + textwrap.dedent(RECEIVERS[receiver])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "the stranger's code ran" not in ran.stdout
    assert "Error" not in ran.stderr, ran.stderr
