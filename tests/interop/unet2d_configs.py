"""Settings of UNet2DModel, small, that between them use every option that our U-Net has."""
BASE = dict(sample_size=16, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8)
DDPM = dict(downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, attention_head_dim=None)
THREE = dict(block_out_channels=(16, 32, 48))
ADM = dict(resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet",
           attn_norm_num_groups=8)

CONFIGS = {
    "defaults of the class": {},
    "as google/ddpm-*": DDPM,
    "as the training script of diffusers": dict(
        THREE, layers_per_block=2, down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")),
    "as google/ncsnpp-*, without skip blocks": dict(
        DDPM, time_embedding_type="fourier", mid_block_scale_factor=1.4142135623730951),
    "as improved-diffusion": dict(ADM, downsample_type="conv", upsample_type="conv", attention_head_dim=16),
    "as guided-diffusion": dict(ADM, **THREE, num_class_embeds=10, down_block_types=("ResnetDownsampleBlock2D",
                                "AttnDownBlock2D", "AttnDownBlock2D"), layers_per_block=2,
                                up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")),
    "one level": dict(block_out_channels=(16,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)),
    "one level with attention": dict(block_out_channels=(16,), down_block_types=("AttnDownBlock2D",),
                                     up_block_types=("AttnUpBlock2D",)),
    "no attention": dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False),
    "attention in the middle alone": dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2),
    "attention at the top alone": dict(down_block_types=("AttnDownBlock2D", "DownBlock2D"),
                                       up_block_types=("UpBlock2D", "AttnUpBlock2D")),
    "attention everywhere": dict(THREE, down_block_types=("AttnDownBlock2D",) * 3,
                                 up_block_types=("AttnUpBlock2D",) * 3),
    "attention going down alone": dict(up_block_types=("UpBlock2D",) * 2),
    "attention going up alone": dict(down_block_types=("DownBlock2D",) * 2),
    "no middle": dict(mid_block_type=None),
    "middle without attention": dict(add_attention=False),
    "middle divided": dict(mid_block_scale_factor=1.4142135623730951),
    "middle with its own groups": dict(attn_norm_num_groups=4),
    "scale and shift, middle not normalised": dict(resnet_time_scale_shift="scale_shift"),
    "scale and shift, middle normalised": dict(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=8),
    "resnet downsampling of attention levels": dict(down_block_types=("AttnDownBlock2D", "DownBlock2D"),
                                                    downsample_type="resnet"),
    "resnet upsampling of attention levels": dict(upsample_type="resnet"),
    "resnet resampling of all levels": dict(
        ADM, **THREE, down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D")),
    "kinds mixed by level": dict(
        THREE, down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D")),
    "padded after": dict(downsample_padding=0),
    "sines first": dict(flip_sin_to_cos=False),
    "frequency shift": dict(freq_shift=1),
    "fourier": dict(time_embedding_type="fourier"),
    "embedding of another width": dict(time_embedding_dim=40),
    "labels": dict(num_class_embeds=7),
    "heads of 4 channels": dict(attention_head_dim=4),
    "one head": dict(attention_head_dim=None),
    "learned variance": dict(out_channels=6),
    "one channel": dict(in_channels=1, out_channels=1),
    "centred input": dict(center_input_sample=True),
    "relu": dict(act_fn="relu"),
    "gelu": dict(act_fn="gelu"),
    "mish": dict(act_fn="mish"),
    "epsilon": dict(norm_eps=1e-2),
    "many blocks": dict(layers_per_block=3),
    "narrower below": dict(block_out_channels=(32, 16)),
    "widths of no whole ratio": dict(block_out_channels=(24, 32, 40), down_block_types=("DownBlock2D",) * 3,
                                     up_block_types=("UpBlock2D",) * 3),
    "groups of one channel": dict(norm_num_groups=16),
    "odd widths": dict(block_out_channels=(15, 21), norm_num_groups=3, attention_head_dim=7, freq_shift=1),
    "two channels": dict(block_out_channels=(2, 5), norm_num_groups=1, attention_head_dim=2),
    "heads that do not divide": dict(block_out_channels=(16, 24), attention_head_dim=7),
    "a head of fewer channels": dict(attention_head_dim=20),
    "learned times": dict(time_embedding_type="learned", num_train_timesteps=1000),
    "old names of blocks": dict(down_block_types=("UNetResDownBlock2D", "UNetResAttnDownBlock2D")),
    "size as a pair": dict(sample_size=(16, 16)),
    "wider than high": dict(sample_size=(16, 24)),
}


def settings(name: str) -> dict:
    """All arguments of UNet2DModel for one of CONFIGS."""
    return BASE | CONFIGS[name]
