// Prints what virt-operator would install, as one list that kubectl can create: CRDs, rights, webhooks. Not what runs, nor how it
// is reached: the tests start the programs as processes.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "kubevirt.io/api/core/v1"

	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/install"
	"kubevirt.io/kubevirt/pkg/virt-operator/util"
)

const namespace = "kubevirt"

// What virt-operator itself answers, and what it makes for a feature gate only.
var leftOut = map[string]bool{"virt-operator-validator": true, "virt-launcher-pod-mutator": true}

// The images are named in deployments only, which are not printed; the strategy is not made without them.
var images = []string{
	util.VirtOperatorImageEnvName, util.VirtApiImageEnvName, util.VirtControllerImageEnvName, util.VirtHandlerImageEnvName,
	util.VirtLauncherImageEnvName, util.VirtExportProxyImageEnvName, util.VirtExportServerImageEnvName,
	util.VirtSynchronizationControllerImageEnvName,
}

func main() {
	if err := printObjects(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func printObjects() error {
	for _, image := range images {
		if err := os.Setenv(image, "localhost/kubevirt:none"); err != nil {
			return err
		}
	}
	kubevirt := &v1.KubeVirt{ObjectMeta: metav1.ObjectMeta{Name: "kubevirt", Namespace: namespace}}
	// Its default. It would be read as a number before it is filled in.
	kubevirt.Spec.SynchronizationPort = strconv.Itoa(int(util.DefaultSynchronizationPort))
	strategy, err := install.GenerateCurrentInstallStrategy(util.GetTargetConfigFromKV(kubevirt), "", namespace)
	if err != nil {
		return err
	}
	// virt-operator's own, which it does not install: its manifest has it.
	own, err := components.NewKubeVirtCrd()
	if err != nil {
		return err
	}
	list := objects{seen: map[string]bool{}}
	add(&list, &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: namespace},
	})
	add(&list, own)
	add(&list, strategy.CRDs()...)
	add(&list, components.NewKubeVirtPriorityClassCR())
	add(&list, strategy.ServiceAccounts()...)
	add(&list, strategy.ClusterRoles()...)
	add(&list, strategy.ClusterRoleBindings()...)
	add(&list, strategy.Roles()...)
	add(&list, strategy.RoleBindings()...)
	add(&list, strategy.ConfigMaps()...)
	add(&list, strategy.ValidatingWebhookConfigurations()...)
	add(&list, strategy.MutatingWebhookConfigurations()...)
	add(&list, strategy.ValidatingAdmissionPolicies()...)
	add(&list, strategy.ValidatingAdmissionPolicyBindings()...)
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", " ")
	return encoder.Encode(map[string]any{"apiVersion": "v1", "kind": "List", "items": list.items})
}

type objects struct {
	items []any
	seen  map[string]bool
}

// The strategy has its config maps twice.
func add[T object](list *objects, more ...T) {
	for _, one := range more {
		name := fmt.Sprintf("%T %s/%s", one, one.GetNamespace(), one.GetName())
		if !list.seen[name] && !leftOut[one.GetName()] {
			list.seen[name] = true
			list.items = append(list.items, one)
		}
	}
}

type object interface {
	GetName() string
	GetNamespace() string
}
