import tomllib
from importlib import resources

import pytest

from medley_planner.catalogue.gpus import BYTES_PER_GIB, GPUType, GPUTypeError, UnknownGPUTypeError, catalogue, gpu_type
from medley_planner.catalogue.gpus import gpu_type_of_product as by_label


def test_the_catalogue_has_the_types_that_clouds_rent_out():
    assert {"T4", "V100-16GB", "L4", "A10G", "A100-40GB", "A100-80GB", "L40S", "H100-80GB", "H200", "B200"} <= set(
        catalogue()
    )
    assert list(catalogue()) == sorted(catalogue())


def test_the_catalogue_has_makers_beside_nvidia_and_cards_of_workstations():
    assert {"MI210", "MI300X", "MI355X", "Gaudi-3", "TPU-v6e", "RTX-4090", "RTX-6000-Ada", "H20", "B300"} <= set(
        catalogue()
    )
    assert len(catalogue()) >= 48


def test_variants_of_one_part_differ_in_their_links_alone():
    for name, other in (("A800-80GB", "A100-80GB"), ("H800-80GB", "H100-80GB")):
        limited, full = gpu_type(name), gpu_type(other)
        assert limited.link_bandwidth_bytes_per_s == 200e9
        assert limited.dense_flops_16bit == full.dense_flops_16bit
        assert limited.memory_bandwidth_bytes_per_s == full.memory_bandwidth_bytes_per_s


def test_h100_and_l4_have_dense_figures():
    h100, l4 = gpu_type("H100-80GB"), gpu_type("L4")

    assert (h100.dense_flops_16bit, h100.dense_flops_8bit) == (989.5e12, 1979e12)
    assert h100.memory_bandwidth_bytes_per_s == 3350e9
    assert (l4.dense_flops_16bit, l4.memory_bandwidth_bytes_per_s) == (121e12, 300e9)


def test_every_row_has_a_source_and_figures_of_a_plausible_size():
    text = resources.files("medley_planner").joinpath("data", "gpus.toml").read_text(encoding="utf-8")
    for row in tomllib.loads(text)["gpu"]:
        gpu = gpu_type(row["name"])
        assert len(row["source"]) > 20, row["name"]
        assert 14 < gpu.memory_gib < 300, row["name"]
        assert 2e11 < gpu.memory_bandwidth_bytes_per_s < 1e13, row["name"]
        assert 30 < gpu.dense_flops_16bit / gpu.memory_bandwidth_bytes_per_s < 600, row["name"]
        as_fast = 1 if gpu.name == "Gaudi-3" else 2
        eight_bit = gpu.dense_flops_8bit
        assert eight_bit is None or eight_bit / gpu.dense_flops_16bit == pytest.approx(as_fast, 0.02), row["name"]
        assert 16e9 <= gpu.link_bandwidth_bytes_per_s <= 900e9, row["name"]
        assert gpu.product_labels or gpu.name.startswith(("Gaudi", "TPU")), row["name"]


def test_product_labels_name_one_type_each():
    labels = [label for gpu in catalogue().values() for label in gpu.product_labels]

    assert len(labels) == len(set(labels))
    assert by_label("NVIDIA-H100-80GB-HBM3") == gpu_type("H100-80GB")
    assert by_label("NVIDIA-A100-SXM4-80GB") == gpu_type("A100-80GB")


@pytest.mark.parametrize("label", ["NVIDIA-L4-SHARED", "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "", "GeForce"])
def test_a_label_of_shared_sliced_or_unknown_cards_is_no_type(label):
    assert by_label(label) is None


def test_names_are_found_whatever_their_case():
    assert gpu_type("a100-80gb-pcie") is gpu_type("A100-80GB-PCIe")


@pytest.mark.parametrize(
    ("name", "first"),
    [("H100", "H100-80GB"), ("A100", "A100-40GB"), ("A10-G", "A10G"), ("l40 s", "L40S"), ("H200-SXM", "H200")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, first):
    with pytest.raises(UnknownGPUTypeError) as caught:
        gpu_type(name)

    assert caught.value.name == name
    assert caught.value.nearest[0] == first
    assert f"did you mean {first}" in str(caught.value)


def test_a_name_like_no_other_gets_no_suggestion():
    with pytest.raises(UnknownGPUTypeError, match=r"^the catalogue has no GPU type 'zzzzzzzz'$"):
        gpu_type("zzzzzzzz")


def test_the_catalogue_cannot_be_changed():
    with pytest.raises(TypeError):
        catalogue()["L4"] = gpu_type("T4")  # type: ignore[index]


def test_a_type_of_ones_own():
    gpu = GPUType.of("Own", memory_gib=24, memory_bandwidth_gb_per_s=600, teraflops=70)

    assert gpu.memory_bytes == 24 * BYTES_PER_GIB
    assert gpu.memory_bandwidth_bytes_per_s == 600e9
    assert gpu.dense_flops_16bit == 70e12
    assert gpu.dense_flops_8bit is None


@pytest.mark.parametrize(
    ("figures", "field"),
    [
        ({"memory_gib": 0}, "memory_bytes"),
        ({"memory_bandwidth_gb_per_s": -1}, "memory_bandwidth_bytes_per_s"),
        ({"teraflops": float("inf")}, "dense_flops_16bit"),
        ({"name": ""}, "name"),
    ],
)
def test_impossible_figures_are_refused_by_field(figures, field):
    with pytest.raises(GPUTypeError, match=f"^{field}: must "):
        GPUType.of(**{"name": "Own", "memory_gib": 24, "memory_bandwidth_gb_per_s": 600, "teraflops": 70} | figures)
