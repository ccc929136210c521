import time
def test_a(house):
    t=time.perf_counter(); house.run(); print(time.perf_counter()-t, house.base.layout.size, house.nodes['bank-1']._kept, house.nodes['bank-1'].noise_multiplier, house.nodes['bank-1'].seconds)
    assert len(house.digests())==1
def test_b(houses):
    t=time.perf_counter(); h=houses(); print('make',time.perf_counter()-t); t=time.perf_counter(); h.run(); print(time.perf_counter()-t)
