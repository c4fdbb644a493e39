// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"iter"
)

// Pod returns the record of a pod.
func (db *DB) Pod(id PodID) (Pod, bool) { return get(db, db.pods, id) }

// Pods goes through all pods, the oldest first.
func (db *DB) Pods() iter.Seq[Pod] { return all(db, db.pods) }

// PodsIn goes through the pods in a state, the oldest first.
func (db *DB) PodsIn(state string) iter.Seq[Pod] { return where(db, db.pods, byState, state) }

// FindPod returns the id that a prefix stands for, ErrNotFound or ErrAmbiguous.
func (db *DB) FindPod(prefix string) (PodID, error) { return find(db, db.pods, prefix) }

// PutPod is Update with [Tx.PutPod].
func (db *DB) PutPod(ctx context.Context, p Pod) error {
	return db.put(ctx, func(tx *Tx) error { return tx.PutPod(p) })
}

// PutPodAsync is PutPod without waiting; see [DB].
func (db *DB) PutPodAsync(p Pod) error {
	return db.putLater(func(tx *Tx) error { return tx.PutPod(p) })
}

// DeletePod is Update with [Tx.DeletePod].
func (db *DB) DeletePod(ctx context.Context, id PodID) error {
	return db.put(ctx, func(tx *Tx) error { tx.DeletePod(id); return nil })
}

// DeletePodAsync is DeletePod without waiting; see [DB]. The pod is gone from
// lists when it returns.
func (db *DB) DeletePodAsync(id PodID) error {
	return db.putLater(func(tx *Tx) error { tx.DeletePod(id); return nil })
}

// Container returns the record of a container.
func (db *DB) Container(id ContainerID) (Container, bool) { return get(db, db.containers, id) }

// Containers goes through all containers, the oldest first.
func (db *DB) Containers() iter.Seq[Container] { return all(db, db.containers) }

// ContainersOf goes through the containers of a pod, the oldest first.
func (db *DB) ContainersOf(id PodID) iter.Seq[Container] {
	return where(db, db.containers, byPod, string(id))
}

// ContainersIn goes through the containers in a state, the oldest first.
func (db *DB) ContainersIn(state string) iter.Seq[Container] {
	return where(db, db.containers, byState, state)
}

// FindContainer returns the id that a prefix stands for, ErrNotFound or
// ErrAmbiguous.
func (db *DB) FindContainer(prefix string) (ContainerID, error) {
	return find(db, db.containers, prefix)
}

// PutContainer is Update with [Tx.PutContainer].
func (db *DB) PutContainer(ctx context.Context, c Container) error {
	return db.put(ctx, func(tx *Tx) error { return tx.PutContainer(c) })
}

// PutContainerAsync is PutContainer without waiting; see [DB].
func (db *DB) PutContainerAsync(c Container) error {
	return db.putLater(func(tx *Tx) error { return tx.PutContainer(c) })
}

// DeleteContainer is Update with [Tx.DeleteContainer].
func (db *DB) DeleteContainer(ctx context.Context, id ContainerID) error {
	return db.put(ctx, func(tx *Tx) error { tx.DeleteContainer(id); return nil })
}

// DeleteContainerAsync is DeleteContainer without waiting; see [DB]. The container
// is gone from lists when it returns.
func (db *DB) DeleteContainerAsync(id ContainerID) error {
	return db.putLater(func(tx *Tx) error { tx.DeleteContainer(id); return nil })
}

// Image returns the record of an image.
func (db *DB) Image(id ImageID) (Image, bool) { return get(db, db.images, id) }

// Images goes through all images, in the order of their ids.
func (db *DB) Images() iter.Seq[Image] { return all(db, db.images) }

// ImageNamed returns the image that has a name.
func (db *DB) ImageNamed(name string) (Image, bool) {
	for i := range where(db, db.images, byName, name) {
		return i, true
	}
	return Image{}, false
}

// ImagesOf goes through the images that consist of a layer, among others, in the
// order of their ids.
func (db *DB) ImagesOf(id LayerID) iter.Seq[Image] {
	return where(db, db.images, byLayer, string(id))
}

// PutImage is Update with [Tx.PutImage].
func (db *DB) PutImage(ctx context.Context, i Image) error {
	return db.put(ctx, func(tx *Tx) error { return tx.PutImage(i) })
}

// DeleteImage is Update with [Tx.DeleteImage].
func (db *DB) DeleteImage(ctx context.Context, id ImageID) error {
	return db.put(ctx, func(tx *Tx) error { tx.DeleteImage(id); return nil })
}

// Layer returns the record of a layer.
func (db *DB) Layer(id LayerID) (Layer, bool) { return get(db, db.layers, id) }

// Layers goes through all layers, in the order of their ids.
func (db *DB) Layers() iter.Seq[Layer] { return all(db, db.layers) }

// PutLayer is Update with [Tx.PutLayer].
func (db *DB) PutLayer(ctx context.Context, l Layer) error {
	return db.put(ctx, func(tx *Tx) error { return tx.PutLayer(l) })
}

// DeleteLayer is Update with [Tx.DeleteLayer].
func (db *DB) DeleteLayer(ctx context.Context, id LayerID) error {
	return db.put(ctx, func(tx *Tx) error { tx.DeleteLayer(id); return nil })
}
