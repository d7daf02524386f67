"""How the answers of batch systems are read: as manuals have them, and as users post them."""

from __future__ import annotations

import json

import pytest

from dask_batch.backends.base import JobState
from dask_batch.backends.commands.attributes import depend, read_json, read_text, read_xml
from dask_batch.backends.commands.gridengine import GRID_ENGINE, read_qacct, read_qstat
from dask_batch.backends.commands.lsf import LSF, read_bhist, read_bjobs
from dask_batch.backends.commands.moab import MOAB, read_showq
from dask_batch.backends.commands.pbs import PBS
from dask_batch.backends.commands.system import Waits, name_at, name_of
from dask_batch.backends.commands.torque import TORQUE

# ---- PBS ---------------------------------------------------------------------------------------

PBS_TEXT = """\
Job Id: 80005196.gadi-pbs
    Job_Name = test1
    Job_Owner = asd562@gadi-login-07.gadi.nci.org.au
    job_state = R
    queue = normal-exec
    Error_Path = gadi.nci.org.au:/scratch/a01/asd562/VASP/test/test1/test1.e800
\t05196
    Hold_Types = n
    Resource_List.walltime = 16:00:00
    Variable_List = PBS_O_HOME=/home/562/asd562,PBS_O_LOGNAME=asd562,
\tPBS_O_PATH=/g/data/a01/random_user/mambaforge/envs/pyiron/bin:/home/562,
\tjob_state = Q
    project = a01

Job Id: 80005197.gadi-pbs
    Job_Name = a-name-that-is-longer-than-what-a-line-of-qstat-has-room-for-and-so-it-
\tgoes-on
    job_state = H
    Hold_Types = s
    depend = afterok:80005196.gadi-pbs@gadi-pbs
"""


def test_the_text_of_pbs_with_lines_that_are_cut():
    first, second = read_text(PBS_TEXT).values()
    assert (first.job_id, first.state, first.name) == (
        "80005196.gadi-pbs", JobState.RUNNING, "test1",
    )  # fmt: skip
    assert second.state is JobState.WAITING
    assert second.name == (
        "a-name-that-is-longer-than-what-a-line-of-qstat-has-room-for-and-so-it-goes-on"
    )


def pbs_job(**attributes):
    job = {"Job_Name": "add-1-0", "job_state": "F", "Hold_Types": "n", **attributes}
    text = json.dumps({"timestamp": 1, "pbs_version": "2022.1", "Jobs": {"7.pbs": job}})
    (status,) = read_json(text).values()
    return status


RUN = "Job run at Mon Jan 24 at 08:39 on (edtb-01[0]:ncpus=1) and finished"


@pytest.mark.parametrize(
    ("attributes", "state", "code", "signal"),
    [
        ({"Exit_status": 0, "comment": RUN}, JobState.COMPLETED, 0, None),
        ({"Exit_status": 3, "comment": RUN}, JobState.FAILED, 3, None),
        ({"Exit_status": 265}, JobState.FAILED, None, 9),
        ({"Exit_status": 271}, JobState.CANCELLED, None, 15),
        ({"Exit_status": -29}, JobState.TIMEOUT, None, None),
        ({"Exit_status": -27}, JobState.OUT_OF_MEMORY, None, None),
        ({"Exit_status": -1}, JobState.FAILED, None, None),
        (
            {
                "Exit_status": 271,
                "Resource_List": {"walltime": "00:01:00"},
                "resources_used": {"walltime": "00:01:02"},
            },
            JobState.TIMEOUT, None, None,
        ),
        ({"comment": "Job deleted as result of dependency on job 4386762.casper-pbs"},
         JobState.DEPENDENCY_FAILED, None, None),
        ({"depend": "afterok:6.pbs@pbs"}, JobState.DEPENDENCY_FAILED, None, None),
        ({"depend": "afterok:6.pbs@pbs",
          "comment": "Not Running: Insufficient amount of resource: ncpus  and terminated"},
         JobState.CANCELLED, None, None),
        ({}, JobState.CANCELLED, None, None),
        ({"job_state": "H", "Hold_Types": "us"}, JobState.HELD, None, None),
        ({"job_state": "H", "Hold_Types": "s"}, JobState.WAITING, None, None),
        ({"job_state": "E"}, JobState.ENDING, None, None),
        ({"job_state": "S"}, JobState.RUNNING, None, None),
        ({"job_state": "?"}, JobState.UNKNOWN, None, None),
    ],
)  # fmt: skip
def test_what_pbs_says_of_a_job(attributes, state, code, signal):
    status = pbs_job(**attributes)
    assert (status.state, status.exit_code, status.signal) == (state, code, signal)


def test_json_of_pbs_without_jobs():
    assert read_json('{"timestamp": 1788909619, "pbs_version": "2024.1.2"}') == {}
    assert read_json("") == {}


@pytest.mark.parametrize(
    "text",
    [
        '{"Jobs":{"53.s":{"Job_Name":"x","Variable_List":{"foo":005}}}}',  # OpenPBS 1255
        '{"Jobs":{"53.s":{"Job_Name":"x","Variable_List":{"A":"\\\'b\\\'"}}}}',  # OpenPBS 2049
        '{"Jobs":{"1.s":{"job_state":"R"}},"Jobs":{"2.s":{"job_state":"R"}}}',  # OpenPBS 585
    ],
)
def test_json_of_pbs_that_is_none_is_refused_and_not_half_read(text):
    with pytest.raises(ValueError):  # noqa: PT011 -- json's own, or ours
        read_json(text)


TORQUE_XML = (
    "<Data><Job><Job_Id>673174.superserver.stanford.edu</Job_Id><Job_Name>STDIN</Job_Name>"
    "<Job_Owner>dacre@wow-server</Job_Owner><resources_used><cput>00:00:00</cput>"
    "<walltime>00:00:00</walltime></resources_used><job_state>C</job_state><queue>tiny</queue>"
    "<Hold_Types>n</Hold_Types><Resource_List><mem>4gb</mem></Resource_List>"
    "<exit_status>0</exit_status></Job>"
    "<Job><Job_Id>673175.superserver.stanford.edu</Job_Id><Job_Name>long</Job_Name>"
    "<job_state>C</job_state><exit_status>271</exit_status>"
    "<resources_used><walltime>24:00:10</walltime></resources_used>"
    "<Resource_List><walltime>23:59:00</walltime></Resource_List></Job></Data>"
)


def test_the_xml_of_torque():
    first, second = read_xml(TORQUE_XML).values()
    assert (first.job_id, first.state, first.exit_code) == (
        "673174.superserver.stanford.edu", JobState.COMPLETED, 0,
    )  # fmt: skip
    assert (second.name, second.state) == ("long", JobState.TIMEOUT)
    assert read_xml("") == {}
    with pytest.raises(ValueError, match="line 1"):
        read_xml("<Data><Job>")


def test_dependencies_of_pbs():
    waits = Waits(successes=("1.s", "2.s"), ends=("3.s",), failures=("4.s",))
    assert depend(waits) == "afterok:1.s:2.s,afterany:3.s,afternotok:4.s"
    assert PBS.waits(Waits()) == []
    assert TORQUE.repoint("9.s", Waits(successes=("1.s",))) == [
        "qalter", "-W", "depend=afterok:1.s", "9.s",
    ]  # fmt: skip


# ---- Grid Engine -------------------------------------------------------------------------------

QSTAT_XML = """\
<?xml version='1.0'?>
<job_info  xmlns:xsd="http://arc.liv.ac.uk/repos/darcs/sge/source/dist/util/resources/schemas/q.xsd">
  <queue_info>
    <job_list state="running">
      <JB_job_number>2836045</JB_job_number>
      <JB_name>vasp.5.3.5</JB_name>
      <state>{running}</state>
      <queue_name>rpa.64g@cmmc182.bc.rzg.mpg.de</queue_name>
    </job_list>
  </queue_info>
  <job_info>
    <job_list state="pending">
      <JB_job_number>14</JB_job_number>
      <JB_name>held</JB_name>
      <state>hqw</state>
      <full_job_name>held-and-longer</full_job_name>
    </job_list>
    <job_list state="pending">
      <JB_job_number>15</JB_job_number>
      <JB_name>kid</JB_name>
      <state>hqw</state>
      <full_job_name>kid</full_job_name>
      <predecessor_jobs_req>14</predecessor_jobs_req>
      <predecessor_jobs>14</predecessor_jobs>
    </job_list>
    <job_list state="pending">
      <JB_job_number>2967274</JB_job_number>
      <JB_name>hello.py</JB_name>
      <state>Eqw</state>
    </job_list>
    <job_list state="zombie">
      <JB_job_number>1</JB_job_number>
      <JB_name>gone</JB_name>
      <state>z</state>
    </job_list>
  </job_info>
</job_info>
"""


def test_the_xml_of_qstat():
    found = read_qstat(QSTAT_XML.format(running="r"))
    states = {job_id: status.state for job_id, status in found.items()}
    assert states == {
        "2836045": JobState.RUNNING,
        "14": JobState.HELD,
        "15": JobState.WAITING,
        "2967274": JobState.LOST,
        "1": JobState.CANCELLED,
    }
    assert found["14"].name == "held-and-longer"
    assert "qstat -j 2967274" in found["2967274"].reason
    assert found["1"].word in GRID_ENGINE.provisional


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("r", JobState.RUNNING), ("t", JobState.RUNNING), ("Rr", JobState.RUNNING),
        ("s", JobState.RUNNING), ("S", JobState.RUNNING), ("T", JobState.RUNNING),
        ("dr", JobState.ENDING), ("dt", JobState.ENDING), ("qw", JobState.WAITING),
        ("hRwq", JobState.HELD), ("Ehqw", JobState.LOST), ("?", JobState.UNKNOWN),
    ],
)  # fmt: skip
def test_the_words_of_grid_engine(word, state):
    assert read_qstat(QSTAT_XML.format(running=word))["2836045"].state is state


QACCT = """\
==============================================================
qname        all.q               
owner        root                
jobname      t_limit             
jobnumber    3                   
qsub_time    Sat Nov 28 07:35:55 2026
failed       {failed}
exit_status  {code}
ru_wallclock {ran}s
maxvmem      5.254MB
category     {category}
"""  # noqa: W291 -- as qacct prints it


@pytest.mark.parametrize(
    ("failed", "code", "ran", "category", "state", "exit_code", "signal"),
    [
        ("0    ", "0                   ", 0, "NONE", JobState.COMPLETED, 0, None),
        ("0    ", "3", 0, "-pe smp 2", JobState.FAILED, 3, None),
        ("37  : qmaster enforced h_rt, h_cpu, or h_vmem limit", "137                  (Killed)",
         4, "-l h_rt=3", JobState.TIMEOUT, None, 9),
        ("100 : assumedly after job", "137                  (Killed)", 4, "-l h_rt=3",
         JobState.TIMEOUT, None, 9),
        ("37  : qmaster enforced h_rt, h_cpu, or h_vmem limit", "137", 4, "-l h_vmem=1G",
         JobState.OUT_OF_MEMORY, None, 9),
        ("100 : assumedly after job", "137                  (Killed)", 0, "NONE",
         JobState.FAILED, None, 9),
        ("26  : opening input/output file", "0", 0, "NONE", JobState.FAILED, 0, None),
    ],
)  # fmt: skip
def test_the_books_of_grid_engine(failed, code, ran, category, state, exit_code, signal):
    text = QACCT.format(failed=failed, code=code, ran=ran, category=category)
    (status,) = read_qacct(text).values()
    assert (status.job_id, status.name) == ("3", "t_limit")
    assert (status.state, status.exit_code, status.signal) == (state, exit_code, signal)


def test_of_several_records_of_one_job_the_last_counts():
    first = QACCT.format(failed="100 : x", code=137, ran=0, category="NONE")
    second = QACCT.format(failed="0", code=0, ran=0, category="NONE")
    assert read_qacct(first + second)["3"].state is JobState.COMPLETED


def test_who_deleted_a_job_is_told_by_univa():
    text = QACCT.format(failed="100 : x", code=137, ran=0, category="NONE")
    text += "deleted_by   someone@login1\n"
    assert read_qacct(text)["3"].state is JobState.CANCELLED


# ---- LSF ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "state", "code"),
    [
        ("7|PEND|-|add-1-0|-", JobState.WAITING, None),
        ("7|PSUSP|-|add-1-0|-", JobState.HELD, None),
        ("7|RUN|-|add-1-0|-", JobState.RUNNING, None),
        ("7|USUSP|-|add-1-0|-", JobState.RUNNING, None),
        ("7|UNKWN|-|add-1-0|-", JobState.UNKNOWN, None),
        ("7|ZOMBI|-|add-1-0|-", JobState.ENDING, None),
        ("7|DONE|-|add-1-0|-", JobState.COMPLETED, 0),
        ("7|EXIT|3|add-1-0|-", JobState.FAILED, 3),
        ("7|EXIT|3|add-1-0", JobState.FAILED, 3),
        ("7|EXIT|140|add-1-0|TERM_RUNLIMIT: job killed after reaching LSF run time limit",
         JobState.TIMEOUT, 140),
        ("7|EXIT|137|add-1-0|TERM_MEMLIMIT: job killed after reaching LSF memory usage limit",
         JobState.OUT_OF_MEMORY, 137),
        ("7|EXIT|130|add-1-0|TERM_OWNER: job killed by owner", JobState.CANCELLED, 130),
        ("7|EXIT|-|add-1-0|TERM_ORPHAN_SYSTEM: The orphan job was automatically terminated",
         JobState.DEPENDENCY_FAILED, None),
        ("7|EXIT|143|add-1-0|TERM_PREEMPT: Job killed after preemption", JobState.PREEMPTED, 143),
    ],
)  # fmt: skip
def test_the_lines_of_bjobs(line, state, code):
    (status,) = read_bjobs(line + "\n").values()
    assert (status.job_id, status.state, status.exit_code, status.name) == (
        "7", state, code, "add-1-0",
    )  # fmt: skip


def test_lines_that_bjobs_does_not_mean_are_skipped():
    assert read_bjobs("No unfinished job found\n\n") == {}


BHIST = """\

Job <100>, Job Name <ocah.r.sim-000001-a0-and-a-name-that-is-so-long-that-the-line
                     -is-cut>, User <u>, Project <default>, Command <x.sh>
Sun Jan 10 17:47:38: Submitted from host <noah-login-01>, to Queue <research-rh
                     74>, CWD <$HOME>, Requested Resources <rusage[numcpus=1:du
                     ration=480]>;
Sun Jan 10 17:47:39: Starting (Pid 110245);
Sun Jan 10 17:47:39: Done successfully. The CPU time used is 0.0 seconds;
Sun Jan 10 17:47:40: Post job process done successfully;

Summary of time in seconds spent in various states by  Sun Jan 10 17:47:40
  PEND     PSUSP    RUN      USUSP    SSUSP    UNKWN    TOTAL
  1        0        0        0        0        0        1
------------------------------------------------------------------------------

Job <101>, Job Name <two>, User <u>, Project <default>, Command <y.sh>
Fri Sep 19 11:30:00: Exited with exit code 3. The CPU time used is 900.2 seconds;

Job <102>, Job Name <three>, User <u>, Project <default>, Command <z.sh>
Fri Sep 19 11:11:00: Signal <KILL> requested by user or administrator <u>;
Fri Sep 19 11:11:00: Exited by signal 9. The CPU time used is 0.2 seconds;

Job <103>, Job Name <four>, User <u>, Project <default>, Command <z.sh>
Fri Sep 19 11:11:00: Exited with exit code 140. The CPU time used is 60 seconds;
Fri Sep 19 11:11:00: Completed <exit>; TERM_RUNLIMIT: job killed after reaching LSF run ti
                     me limit;

Job <104>, Job Name <five>, User <u>, Project <default>, Command <z.sh>
Fri Sep 19 11:11:00: Submitted from host <h>, to Queue <regress>, CWD <$HOME>;
"""


def test_the_history_of_lsf():
    found = read_bhist(BHIST)
    seen = {i: (s.state, s.exit_code, s.signal) for i, s in found.items()}
    assert seen == {
        "100": (JobState.COMPLETED, 0, None),
        "101": (JobState.FAILED, 3, None),
        "102": (JobState.FAILED, None, 9),
        "103": (JobState.TIMEOUT, 140, None),
        "104": (JobState.UNKNOWN, None, None),
    }
    assert found["100"].name.endswith("-that-the-line-is-cut")


def test_conditions_of_lsf():
    waits = Waits(successes=("1", "2"), ends=("3",), failures=("4", "5"))
    expression = "done(1) && done(2) && ended(3) && (exit(4) || exit(5))"
    assert LSF.waits(waits) == ["-w", expression, "-ti"]
    assert LSF.waits(Waits(successes=("1",), patient=True)) == ["-w", "done(1)"]
    assert LSF.waits(Waits(failures=("1", "2"))) == ["-w", "exit(1) || exit(2)", "-ti"]


# ---- Moab --------------------------------------------------------------------------------------

SHOWQ = """\
<Data>
 <Object>queue</Object>
 <cluster LocalActiveNodes="68" LocalAllocProcs="1360" time="1553503935"/>
 <queue count="1" option="active">
  <job AWDuration="140875" Account="bw16g013" DRMJID="5096381.mg1.nemo.privat" JobID="5096381"
   JobName="startVM.py" ReqAWDuration="172800" State="Running" User="ka_qb1555"/>
 </queue>
 <queue count="1" option="eligible">
  <job DRMJID="4761849.mg1" JobID="4761849" JobName="startVM.py" StartTime="0" State="Idle"/>
 </queue>
 <queue count="1" option="completed">
  <job CompletionCode="0" CompletionTime="1438033081" JobID="49188739" JobName="test.sh"
   State="Completed"></job>
  <job CompletionCode="3" JobID="2" JobName="a" State="Completed"></job>
  <job CompletionCode="CNCLD(271)" JobID="3" JobName="a" State="Removed"></job>
 </queue>
</Data>
"""


def test_the_xml_of_showq():
    found = read_showq(SHOWQ)
    assert {i: (s.state, s.exit_code) for i, s in found.items()} == {
        "5096381": (JobState.RUNNING, None),
        "4761849": (JobState.WAITING, None),
        "49188739": (JobState.COMPLETED, 0),
        "2": (JobState.FAILED, 3),
        "3": (JobState.CANCELLED, None),
    }
    assert found["5096381"].name == "startVM.py"


# ---- what submissions print --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "printed", "job_id"),
    [
        (PBS, "80005196.gadi-pbs\n", "80005196.gadi-pbs"),
        (PBS, "Welcome to the cluster\n2154.edtb-01.mcp.alcf.anl.gov\n",
         "2154.edtb-01.mcp.alcf.anl.gov"),
        (TORQUE, "163592.mgmt2.scc.camh.net\n", "163592.mgmt2.scc.camh.net"),
        (GRID_ENGINE, "16\n", "16"),
        (LSF, "Job <99999> is submitted to queue <gpu_l4>.\n", "99999"),
        (LSF, "Job <7> is submitted to default queue <normal>.\n", "7"),
        (MOAB, "\n\nMoab.123\n", "Moab.123"),
        (MOAB, "\n5096381\n", "5096381"),
    ],
)  # fmt: skip
def test_the_id_that_a_submission_prints(system, printed, job_id):
    assert system.job_id.findall(printed)[-1] == job_id


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (PBS, "qsub: would exceed queue generic's per-user limit of jobs in 'Q' state"),
        (PBS, "qsub: Maximum number of jobs already in queue workq"),
        (TORQUE, "qsub: Maximum number of jobs already in queue for user MSG=total number of "
         "current user's jobs exceeds the queue limit: user yoo p@halstead, queue standby"),
        (GRID_ENGINE, "job rejected: only 20 jobs are allowed per user (current job count: 20)"),
        (LSF, "User <x>: Pending job threshold reached. Retrying in 60 seconds..."),
    ],
)  # fmt: skip
def test_the_words_of_a_full_queue(system, words):
    assert system.words.full.search(words)


@pytest.mark.parametrize(
    "words",
    ["qsub: Unknown queue: short-q", "qsub: Job violates queue and/or server resource limits"],
)
def test_a_request_that_is_never_met_is_no_full_queue(words):
    assert not PBS.words.full.search(words)


@pytest.mark.parametrize("name", ["add-1-0", "_add-1-0", "0add-1-0", "n-_x", "añadir-1-0"])
def test_names_come_back_as_they_were(name):
    assert name_at(name)[0].isalpha()
    assert name_of(name_at(name)) == name
