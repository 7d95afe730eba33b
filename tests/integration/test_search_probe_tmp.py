import numpy as np, pytest
from workers.retrieval.store import Store, Entry
from shared.config import Settings
@pytest.mark.parametrize("meta", [{"n":2**63-1},{"n":2**63},{"n":2**70},{"n":-2**63},{"":1},{"chroma:document":"x"},{"chroma:foo":"x"},{"#document":"x"},{"$and":1},{"a.b":1},{"f":1e308},{"k"*5000:"v"*100000},{"b":True},{"e":""},{"한글":"값"}], ids=lambda m: repr(m)[:20])
def test_x(chroma_url, meta):
    s=Store(Settings(_env_file=None,chroma_url=chroma_url))
    s.make("probe-1","cosine")
    s.upsert("probe-1",[Entry(id="a"+repr(meta)[:10],text="t",metadata={"source":"s",**meta})],np.ones((1,384),dtype=np.float32))
@pytest.mark.parametrize("where", [{"n":2**70},{"":1},{"$and":"x"},{"chroma:document":"x"},{"f":float(1)},{"b":True},{"a":"x","b":1}], ids=lambda m: repr(m)[:20])
def test_w(chroma_url, where):
    s=Store(Settings(_env_file=None,chroma_url=chroma_url))
    s.make("probe-1","cosine")
    s.query("probe-1",np.ones(384,dtype=np.float32),limit=3,where=where)
