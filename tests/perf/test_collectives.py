"""Reading collectives from compiled text: lines as the TPU compiler writes them, shortened."""

import pytest

from pit_jax.perf import collectives, roofline, topology

PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%gather_first (p: bf16[1,16,512]) -> (bf16[1,16,512], bf16[1,128,512]) {
  %p = bf16[1,16,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={1}, frontend_attributes={chain_id="3"}
  ROOT %start = (bf16[1,16,512]{2,1,0}, bf16[1,128,512]{2,1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%gather_second (p: bf16[1,16,512]) -> bf16[1,128,512] {
  %p = bf16[1,16,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.2 = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={1}, frontend_attributes={chain_id="3"}
  ROOT %done = bf16[1,128,512]{2,1,0} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.7 (input.7: f32[128,10]) -> f32[16,10] {
  %input.7 = f32[128,10]{1,0} parameter(0)
  %all-reduce.9 = f32[128,10]{1,0} all-reduce(%input.7), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[16,10]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={16,10}
}

%body (wide: (s32[], bf16[1,16,512])) -> (s32[], bf16[1,16,512]) {
  %wide = (s32[], bf16[1,16,512]) parameter(0)
  %kernel = bf16[8,128]{1,0} custom-call(%wide), frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="splash"}
  %first = (bf16[1,16,512], bf16[1,128,512]) fusion(%wide), kind=kCustom, calls=%gather_first
  %second = bf16[1,128,512] fusion(%first), kind=kCustom, calls=%gather_second
  %all-reduce.2 = (f32[128]{0}, bf16[2,64]{1,0}) all-reduce(%wide, %wide), channel_id=9, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %next = (s32[], bf16[1,16,512]) tuple(%wide)
}

%condition (wide: (s32[], bf16[1,16,512])) -> pred[] {
  %limit = s32[]{:T(128)} constant(11)
  %wide = (s32[], bf16[1,16,512]) parameter(0)
  %turn = s32[] get-tuple-element(%wide), index=0
  ROOT %lt = pred[] compare(%turn, %limit), direction=LT
}

%never (p: f32[4]) -> f32[4] {
  ROOT %all-reduce.3 = f32[4]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (p: f32[128,10]) -> f32[16,10] {
  %p = f32[128,10]{1,0} parameter(0)
  %loop = (s32[], bf16[1,16,512]) while(%p), condition=%condition, body=%body
  %permute = (f32[100]{0}, f32[100]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}
  %permuted = f32[100]{0} collective-permute-done(%permute)
  %send.1 = (bf16[47,8,128]{2,1,0}, u32[], token[]) send(%p), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.2 = (bf16[47,8,128]{2,1,0}, u32[], token[]) send(%p), channel_id=5, is_host_transfer=true
  ROOT %fusion.7 = f32[16,10]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.7
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], collectives.Collective]:
    return {(c.kind, c.between): c for c in collectives.parse(PROGRAM)}


def test_a_gather_in_pieces_counts_once_a_turn_of_its_loop(found):
    gather = found["all-gather", "chips"]
    assert (gather.count, gather.in_loop, gather.group) == (11, 11, 8)
    assert gather.bytes == 11 * 128 * 512 * 2


def test_all_results_of_one_collective_count_also_after_a_kernels_lines(found):
    reduce = found["all-reduce", "chips"]
    assert (reduce.count, reduce.bytes, reduce.group) == (11, 11 * (128 * 4 + 128 * 2), 2)


def test_a_reduce_scatter_is_an_all_reduce_in_a_computation_of_that_name(found):
    scatter = found["reduce-scatter", "chips"]
    assert (scatter.count, scatter.in_loop, scatter.bytes) == (1, 0, 128 * 10 * 4)


def test_operations_in_flight_name_their_input_too(found):
    permute = found["collective-permute", "chips"]
    assert (permute.count, permute.bytes) == (1, 400)


def test_what_crosses_slices_is_a_send_of_the_megascale_runtime(found):
    across = found["all-reduce", "slices"]
    assert (across.count, across.bytes) == (1, 47 * 8 * 128 * 2)


def test_nothing_else_is_found_and_the_largest_comes_first(found):
    assert len(found) == 5
    sizes = [c.bytes for c in collectives.parse(PROGRAM)]
    assert sizes == sorted(sizes, reverse=True)


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    text = PROGRAM.replace("direction=LT", "direction=NE")
    gather = next(c for c in collectives.parse(text) if c.kind == "all-gather")
    assert (gather.count, gather.in_loop, gather.turns_known) == (1, 1, False)


def test_a_known_trip_count_needs_no_condition():
    known = 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    text = PROGRAM.replace("body=%body", known).replace("direction=LT", "direction=NE")
    gather = next(c for c in collectives.parse(text) if c.kind == "all-gather")
    assert (gather.count, gather.turns_known) == (5, True)


def test_traffic_follows_the_ring_algorithms(found):
    assert found["all-gather", "chips"].traffic == 11 * 128 * 512 * 2 * 7 / 8
    assert found["all-reduce", "chips"].traffic == 11 * 768 * 2 * 1 / 2
    assert found["reduce-scatter", "chips"].traffic == 5120 * 7 / 8


def test_the_slowest_clock_bounds_the_step():
    chip = topology.CHIPS["v5e"]
    one = collectives.parse(PROGRAM)
    by_compute = roofline.estimate(chip, 197e12, 0, one)
    assert (by_compute.bound, by_compute.step_s) == ("compute", 1.0)
    by_memory = roofline.estimate(chip, 1.0, int(819e9), one)
    assert (by_memory.bound, by_memory.step_s) == ("HBM", 1.0)
    by_network = roofline.estimate(chip, 1.0, 1, one)
    assert by_network.bound == "interconnect"
    assert by_network.step_s == pytest.approx(47 * 8 * 128 * 2 / 3.125e9)  # between slices


def test_training_moves_the_state_both_ways_and_evaluation_reads_parameters():
    assert roofline.hbm_bytes(10, 20, 5, trains=True) == 70
    assert roofline.hbm_bytes(10, 20, 5, trains=False) == 20
