import time, threading
from tests.e2e import corpus
from tests.e2e.stack import LiveStack, until

def test_it(stack: LiveStack, client) -> None:
    docs = corpus.samples(400, seed="x")
    client.put_collection("tmpx")
    job = client.submit("ingest", {"collection": "tmpx", "sources": corpus.as_sources(docs), "splitter": corpus.CHUNKING})
    t0 = time.monotonic()
    nextkill = [60, 150, 240]
    last = None
    while stack.state(job.id) != "succeeded" and time.monotonic()-t0 < 150:
        p = stack.progress(job.id)
        if nextkill and p >= nextkill[0]:
            nextkill.pop(0)
            stack.kill("cpu-1")
            print("KILL", round(time.monotonic()-t0,1), flush=True)
        row = stack.sql("""select extract(epoch from clock_timestamp()-swept_at)::numeric(6,1),
          (select count(*) from steps where state='running'), (select count(*) from steps where state='running' and lease_until<now()),
          (select count(*) from pg_locks where locktype='advisory'), (select count(*) from steps where state='queued') from queues where name='control'""")[0]
        try:
            with stack.redis() as r:
                q = {k: r.llen(k) for k in ("control","query","embed","ingest")}
        except Exception as e: q = str(e)
        print(round(time.monotonic()-t0,1), p, "age %s running %s expired %s advisory %s queued %s" % tuple(map(str,row)), q, flush=True)
        time.sleep(0.5)
    for r in stack.sql("select id,name,attempt,state,started_at,finished_at from steps where attempt>1"): print(r)
