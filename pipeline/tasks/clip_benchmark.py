"""The folders of clip_benchmark's public WebDataset tars (github.com/LAION-AI/CLIP_benchmark) by VTAB-1k task.

They hold the whole data sets, not VTAB-1k's 800 + 200 images. SUN397 is missing because its tars have other splits.
"""

FOLDERS = {
    "vtab-cifar100": "wds_vtab-cifar100",
    "vtab-caltech101": "wds_vtab-caltech101",
    "vtab-dtd": "wds_vtab-dtd",
    "vtab-oxford_flowers102": "wds_vtab-flowers",
    "vtab-oxford_iiit_pet": "wds_vtab-pets",
    "vtab-svhn": "wds_vtab-svhn",
    "vtab-patch_camelyon": "wds_vtab-pcam",
    "vtab-eurosat": "wds_vtab-eurosat",
    "vtab-resisc45": "wds_vtab-resisc45",
    "vtab-diabetic_retinopathy": "wds_vtab-diabetic_retinopathy",
    "vtab-clevr_count": "wds_vtab-clevr_count_all",
    "vtab-clevr_dist": "wds_vtab-clevr_closest_object_distance",
    "vtab-dmlab": "wds_vtab-dmlab",
    "vtab-kitti": "wds_vtab-kitti_closest_vehicle_distance",
    "vtab-dsprites_loc": "wds_vtab-dsprites_label_x_position",
    "vtab-dsprites_ori": "wds_vtab-dsprites_label_orientation",
    "vtab-smallnorb_azi": "wds_vtab-smallnorb_label_azimuth",
    "vtab-smallnorb_ele": "wds_vtab-smallnorb_label_elevation",
}

# VTAB merges dSprites' 32 positions and 40 orientations into 16 classes: floor(label / (n / 16)).
LABEL_MAPS = {
    "wds_vtab-dsprites_label_x_position": tuple(label * 16 // 32 for label in range(32)),
    "wds_vtab-dsprites_label_orientation": tuple(label * 16 // 40 for label in range(40)),
}
